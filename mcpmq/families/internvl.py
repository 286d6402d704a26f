"""InternVL3 and InternVL3.5: InternViT on tiles of one size, a projector that merges squares of patches, and Qwen."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.family import Architecture, Family, SmoothingMapping, TensorSpec
from mcpmq.families.internvit import InternVitConfig, internvit_specs
from mcpmq.families.language import LanguageConfig, normalize_text_config
from mcpmq.families.language_shape import LanguageShape
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.smoothing_mappings import DECODER, SIGLIP
from mcpmq.families.tensors import decoder_specs, layer_norm_specs, matrix_specs, with_module_prefixes

# Hub name prefix -> prefix in the torch module.
MODULE_PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.": "",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
PROJECTOR = SmoothingMapping("projector", "norm", ("up",))


class _Language(LanguageConfig):
    model_type: Literal["qwen2", "qwen3"]


class _Config(ConfigSchema):
    downsample_ratio: PositiveFloat = Field(default=0.5, le=1)
    projector_hidden_act: Literal["gelu"] = "gelu"
    vision_feature_layer: Literal[-1] = -1
    vision_feature_select_strategy: Literal["default"] = "default"


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or a feature is not supported.
    """
    merge_size = int(1 / validate_config(_Config, config).downsample_ratio)
    vision = validate_config(InternVitConfig, config.get("vision_config") or {}).to_tiles(merge_size)
    return Architecture(_language(config), vision)


def _language(config: Mapping[str, Any]) -> LanguageShape:
    text = normalize_text_config({"tie_word_embeddings": True, **config})
    kind = (config.get("text_config") or {}).get("model_type", "qwen2")
    sizes = validate_config(_Language, {**text, "model_type": kind})
    return sizes.to_shape(kind, attention_bias=kind == "qwen2", qk_norm=kind == "qwen3")


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    specs = (
        *internvit_specs(architecture.required_vision, "vision_tower"),
        *_projector_specs(architecture, "multi_modal_projector"),
        *decoder_specs(architecture.language, "language_model.model", "language_model.lm_head.weight"),
    )
    return with_module_prefixes(specs, MODULE_PREFIXES)


def _projector_specs(architecture: Architecture, hub_name: str) -> Iterator[TensorSpec]:
    vision, hidden_size = architecture.required_vision, architecture.language.hidden_size
    square = vision.hidden_size * vision.spatial_merge_size**2
    yield from layer_norm_specs("projector.norm", f"{hub_name}.layer_norm", square)
    yield from matrix_specs("projector.up", f"{hub_name}.linear_1", (hidden_size, square))
    yield from matrix_specs("projector.down", f"{hub_name}.linear_2", (hidden_size, hidden_size))


INTERNVL = Family(
    name="internvl",
    hub_ids=("OpenGVLab/InternVL3_5-1B-HF", "OpenGVLab/InternVL3_5-2B-HF", "OpenGVLab/InternVL3_5-4B-HF"),
    matches=lambda config: config.get("model_type") == "internvl",
    parse_architecture=_parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.internvl_inputs",
    prompt_format=PromptFormat(
        supports_video=False,
        image_token="<IMG_CONTEXT>",
        uses_image_id=False,
        image_placeholder="<IMG_CONTEXT>",
        image_markers=(1, 1),
    ),
    torch_builder="mcpmq.families.modeling_transformers:internvl",
    caveats=(("gguf", "llama.cpp uses the approximate GELU, the original the exact one"),),
    smoothing_mappings=(*DECODER, *SIGLIP, PROJECTOR),
)
