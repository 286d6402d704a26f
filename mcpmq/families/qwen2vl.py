"""Qwen2-VL: a vision tower of any resolution with rotary positions, a merger, and Qwen2 with M-RoPE."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.families.config_schema import Width, checked
from mcpmq.families.family import Architecture, Family, LanguageShape, TensorSpec
from mcpmq.families.language import LanguageConfig, text_keys
from mcpmq.families.prompt_format import Layout
from mcpmq.families.qwen_vision import Patches, patch_embedding, qwen_layer, qwen_merger
from mcpmq.families.smoothing_mappings import GATED_LANGUAGE, QWEN_VISION
from mcpmq.families.tensors import decoder, renamed

SECTIONS = (16, 24, 24)  # frequencies turned by time, row and column, where a configuration does not say it
# The native module's names begin otherwise than the checkpoint's.
NATIVE_PREFIXES = {"model.": "model.language_model.", "visual.": "model.visual."}
FFN = {"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
MERGER = ("ln_q", "mlp.0", "mlp.2")


class _Language(LanguageConfig):
    default_theta: ClassVar[float] = 1e6
    rms_norm_eps: PositiveFloat = 1e-5


class _Vision(Patches):
    embed_dim: Width = 1280
    mlp_ratio: PositiveInt = Field(default=4, le=16)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    sizes = checked(_Vision, config.get("vision_config") or {})
    vision = sizes.shape("qwen2-vl", sizes.embed_dim, sizes.embed_dim * sizes.mlp_ratio)
    return Architecture(language_of(config), vision)


def language_of(config: Mapping[str, Any]) -> LanguageShape:
    """Qwen2 with M-RoPE."""
    sizes = checked(_Language, text_keys(config))
    return sizes.shape("qwen2vl", attention_bias=True, rope_sections=sizes.rope.mrope_section or SECTIONS)


def tensors(architecture: Architecture, ffn: Mapping[str, str] = FFN) -> tuple[TensorSpec, ...]:
    """The whole model; `ffn` says what the matrices behind the attention of vision are called."""
    specs = (
        *_tower(architecture, ffn),
        *qwen_merger(architecture, MERGER, "projector", "visual.merger"),
        *decoder(architecture.language, "model"),
    )
    return renamed(specs, NATIVE_PREFIXES)


def _tower(architecture: Architecture, ffn: Mapping[str, str]) -> Iterator[TensorSpec]:
    shape = architecture.sees
    yield patch_embedding(shape, "visual")
    for layer in range(shape.layers):
        yield from qwen_layer(shape, ffn, layer, "visual")


QWEN2_VL = Family(
    name="qwen2-vl",
    published=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
    recognises=lambda config: config.get("model_type") == "qwen2_vl",
    architecture=_architecture,
    tensors=tensors,
    inputs="mcpmq.families.qwenvl_inputs",
    layout=Layout(placeholder="<|image_pad|>"),
    native="mcpmq.families.modeling_transformers:qwen2_vl",
    images_have_rows=True,
    caveats=(("gguf", "llama.cpp takes 0 for the epsilon of this model's norms, whatever the file says"),),
    folds=(*GATED_LANGUAGE, *QWEN_VISION),
)
