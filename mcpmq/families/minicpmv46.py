"""MiniCPM-V 4.6: SigLIP with two mergers instead of a resampler, and Qwen3.5 with linear attention."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import NonNegativeInt

from mcpmq.families.config_schema import ConfigSchema, check_unsupported_keys, validate_config
from mcpmq.families.family import Architecture, Family, TensorSpec, VisionShape
from mcpmq.families.hybrid_language import HybridConfig
from mcpmq.families.language import normalize_text_config
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.siglip import SiglipConfig, siglip_specs
from mcpmq.families.smoothing_mappings import HYBRID_DECODER, SIGLIP, SIGLIP_MERGERS
from mcpmq.families.tensors import decoder_specs, layer_norm_specs, matrix_specs

NAME = "minicpm-v-4.6"
SPATIAL_MERGE_SIZES = {"16x": 4, "4x": 2}  # side of the square of patches that becomes one token


class _Config(ConfigSchema):
    vision_config: SiglipConfig
    insert_layer_id: NonNegativeInt = 6
    downsample_mode: Literal["16x", "4x"] = "16x"
    merge_kernel_size: tuple[Literal[2], Literal[2]] = (2, 2)
    merger_times: Literal[1] = 1


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or a feature is not supported.
    """
    check_unsupported_keys(config, NAME, "drop_vision_last_layer")
    language = validate_config(HybridConfig, normalize_text_config(config)).to_shape("qwen35")
    return Architecture(language, _vision_shape(validate_config(_Config, config)))


def _vision_shape(config: _Config) -> VisionShape:
    return config.vision_config.to_shape(
        "siglip-merger",
        spatial_merge_size=SPATIAL_MERGE_SIZES[config.downsample_mode],
        merger_layer=config.insert_layer_id,
        uses_vit_merger=config.downsample_mode == "16x",
    )


def _tensor_specs(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (
        *siglip_specs(architecture.required_vision, "model.vision_tower"),
        *_merger_specs(architecture, "model.merger.mlp.0"),
        *decoder_specs(architecture.language, "model.language_model"),
    )


def _merger_specs(architecture: Architecture, hub_name: str) -> Iterator[TensorSpec]:
    merged_size = 4 * architecture.required_vision.hidden_size
    yield from layer_norm_specs("projector.norm", f"{hub_name}.pre_norm", merged_size)
    yield from matrix_specs("projector.up", f"{hub_name}.linear_1", (merged_size, merged_size))
    hidden_size = architecture.language.hidden_size
    yield from matrix_specs("projector.down", f"{hub_name}.linear_2", (hidden_size, merged_size))


MINICPM_V_4_6 = Family(
    name=NAME,
    hub_ids=("openbmb/MiniCPM-V-4.6",),
    matches=lambda config: config.get("model_type") == "minicpmv4_6",
    parse_architecture=_parse_architecture,
    tensor_specs=_tensor_specs,
    inputs_module="mcpmq.families.minicpmv_inputs",
    prompt_format=PromptFormat(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        slicing="merged",
        video_has_id=True,
        image_span_input="none",
    ),
    torch_builder="mcpmq.families.modeling_transformers:minicpmv4_6",
    passthrough=(("drafts", "mtp"),),
    smoothing_mappings=(*HYBRID_DECODER, *SIGLIP, *SIGLIP_MERGERS),
)
