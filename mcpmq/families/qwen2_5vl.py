"""Qwen2.5-VL: Qwen2-VL with window attention and a gated FFN in the vision encoder."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from mcpmq.families.config_schema import HiddenSize, IntermediateSize, validate_config
from mcpmq.families.family import Architecture, VisionShape
from mcpmq.families.qwen2vl import QWEN2_VL, parse_language, tensor_specs
from mcpmq.families.qwen_vision import QwenVisionConfig
from mcpmq.families.smoothing_mappings import DECODER, GATED_QWEN_VISION

FFN_NAMES = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}


class _Vision(QwenVisionConfig):
    hidden_act: Literal["silu"] = "silu"
    hidden_size: HiddenSize = 1280
    intermediate_size: IntermediateSize = 3420
    window_size: PositiveInt = Field(default=112, le=16384)
    fullatt_block_indexes: tuple[NonNegativeInt, ...] = (7, 15, 23, 31)


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    return Architecture(parse_language(config), parse_vision(config))


def parse_vision(config: Mapping[str, Any]) -> VisionShape:
    """Read the hyperparameters of the vision encoder."""
    sizes = validate_config(_Vision, config.get("vision_config") or {})
    window = {
        "window_size": sizes.window_size // sizes.patch_size,
        "full_attention_layers": sizes.fullatt_block_indexes,
    }
    return sizes.to_shape("qwen2.5-vl", sizes.hidden_size, sizes.intermediate_size, **window)


QWEN2_5_VL = replace(
    QWEN2_VL,
    name="qwen2.5-vl",
    hub_ids=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    matches=lambda config: config.get("model_type") == "qwen2_5_vl",
    parse_architecture=_parse_architecture,
    tensor_specs=lambda architecture: tensor_specs(architecture, FFN_NAMES),
    prompt_format=replace(QWEN2_VL.prompt_format, video_time="seconds"),
    torch_builder="mcpmq.families.modeling_transformers:qwen2_5_vl",
    smoothing_mappings=(*DECODER, *GATED_QWEN_VISION),
)
