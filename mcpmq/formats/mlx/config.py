"""config.json as mlx-vlm reads it: with the keys that its models need and transformers can leave out."""

from collections.abc import Mapping
from typing import Any

from mcpmq.errors import FormatError
from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats.model_view import ModelView

VISION_TYPES = {"qwen3-vl": "qwen3_vl"}  # transformers 5 saves another `model_type` than the published files have


def mlx_config(model: ModelView) -> dict[str, Any]:
    """Return the configuration of the checkpoint with the keys of the language model and of the vision encoder."""
    config, family = dict(model.config), model.artifact.manifest.family
    text, vision = config.get("text_config"), config.get("vision_config")
    if isinstance(text, Mapping):
        language = model.architecture.language
        tied = {"tie_word_embeddings": language.tied_embeddings}
        config["text_config"] = {**_text_defaults(language), **text, **tied}
    if family in VISION_TYPES and isinstance(vision, Mapping):
        config["vision_config"] = {**vision, "model_type": VISION_TYPES[family]}
    return config


def _text_defaults(language: LanguageShape) -> dict[str, Any]:
    """Return the base of the rotary embedding, and the distance of layers with softmax attention."""
    defaults: dict[str, Any] = {"rope_theta": language.rope_theta}
    if language.linear_attention:
        full = [layer for layer in range(language.num_layers) if not language.is_linear_attention(layer)]
        every = full[0] + 1 if full else language.num_layers + 1
        if full != [*range(every - 1, language.num_layers, every)]:
            raise FormatError(
                f"layers {full} have full attention, mlx-vlm supports every {every}th only",
                "remove other layers, or export to another format",
            )
        defaults["full_attention_interval"] = every
    return defaults
