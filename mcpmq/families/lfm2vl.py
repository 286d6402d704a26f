"""LFM2-VL: SigLIP2 on slices of any aspect ratio, a projector that merges squares of patches, and LFM2."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any, Literal

from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, HiddenSize, validate_config
from mcpmq.families.family import Architecture, Family, SmoothingMapping, TensorSpec, VisionShape
from mcpmq.families.lfm_language import LfmConfig, lfm_specs
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.siglip import DefaultSiglipConfig, siglip_specs
from mcpmq.families.smoothing_mappings import CONVOLUTION_DECODER, SIGLIP
from mcpmq.families.tensors import layer_norm_specs, matrix_specs, with_module_prefixes

MODULE_PREFIXES = {"model.vision_tower.vision_model.": "model.vision_tower."}
TILE_SIDE = 512  # pixels; the largest slice of the published models


class _Vision(DefaultSiglipConfig):
    num_patches: PositiveInt = Field(default=256, le=1 << 20)  # of the position table


class _Config(ConfigSchema):
    downsample_factor: PositiveInt = Field(default=2, le=16)
    projector_hidden_size: HiddenSize = 2560
    projector_hidden_act: Literal["gelu"] = "gelu"
    projector_bias: Literal[True] = True
    projector_use_layernorm: bool = True
    vision_feature_layer: Literal[-1] = -1


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or a feature is not supported.
    """
    language = validate_config(LfmConfig, LfmConfig.normalize(config)).to_shape("lfm2")
    sizes = validate_config(_Config, config)
    vision = validate_config(_Vision, config.get("vision_config") or {})
    side = isqrt(vision.num_patches)
    if side**2 != vision.num_patches:
        raise CheckpointError(
            f"`config.json` has {vision.num_patches} positions (`num_patches`), not a square number",
            "compare it with the published file",
        )
    shape = vision.to_shape("siglip-naflex", spatial_merge_size=sizes.downsample_factor, slice_resolution=TILE_SIDE)
    shape = replace(shape, position_grid_size=side, projector_norm=sizes.projector_use_layernorm)
    return Architecture(language, replace(shape, projector_size=sizes.projector_hidden_size))


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    vision = architecture.required_vision
    patch = (vision.hidden_size, 3 * vision.patch_size**2)  # rows, columns and channels of a patch
    specs = (
        *siglip_specs(vision, "model.vision_tower.vision_model", position_role="other", patch_shape=patch),
        *_projector_specs(vision, architecture.language.hidden_size, "model.multi_modal_projector"),
        *lfm_specs(architecture.language, "model.language_model", "lm_head.weight"),
    )
    return with_module_prefixes(specs, MODULE_PREFIXES)


def _projector_specs(vision: VisionShape, hidden_size: int, hub_name: str) -> Iterator[TensorSpec]:
    square = vision.hidden_size * vision.spatial_merge_size**2
    if vision.projector_norm:
        yield from layer_norm_specs("projector.norm", f"{hub_name}.layer_norm", square)
    yield from matrix_specs("projector.up", f"{hub_name}.linear_1", (vision.projector_size, square))
    yield from matrix_specs("projector.down", f"{hub_name}.linear_2", (hidden_size, vision.projector_size))


LFM2_VL = Family(
    name="lfm2-vl",
    hub_ids=("LiquidAI/LFM2-VL-450M", "LiquidAI/LFM2-VL-1.6B", "LiquidAI/LFM2-VL-3B"),
    matches=lambda config: config.get("model_type") == "lfm2_vl",
    parse_architecture=_parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.lfm_inputs",
    prompt_format=PromptFormat(
        supports_video=False, image_token="<image>", uses_image_id=False, image_placeholder="<image>"
    ),
    torch_builder="mcpmq.families.modeling_transformers:lfm2_vl",
    caveats=(("gguf", "llama.cpp uses the approximate GELU in the projector, the original the exact one"),),
    smoothing_mappings=(*CONVOLUTION_DECODER, *SIGLIP, SmoothingMapping("projector", "norm", ("up",))),
)
