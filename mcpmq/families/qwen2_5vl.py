"""Qwen2.5-VL: Qwen2-VL with a tower whose attention stays in windows and whose FFN is gated."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from mcpmq.families.config_schema import HiddenWidth, Width, checked
from mcpmq.families.family import Architecture
from mcpmq.families.qwen2vl import QWEN2_VL, language_of, tensors
from mcpmq.families.qwen_vision import Patches
from mcpmq.families.smoothing_mappings import GATED_LANGUAGE, GATED_QWEN_VISION

FFN = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}


class _Vision(Patches):
    hidden_size: Width = 1280
    intermediate_size: HiddenWidth = 3420
    window_size: PositiveInt = Field(default=112, le=16384)
    fullatt_block_indexes: tuple[NonNegativeInt, ...] = (7, 15, 23, 31)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    sizes = checked(_Vision, config.get("vision_config") or {})
    window = {"window": sizes.window_size // sizes.patch_size, "full_attention": sizes.fullatt_block_indexes}
    vision = sizes.shape("qwen2.5-vl", sizes.hidden_size, sizes.intermediate_size, **window)
    return Architecture(language_of(config), vision)


QWEN2_5_VL = replace(
    QWEN2_VL,
    name="qwen2.5-vl",
    published=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    recognises=lambda config: config.get("model_type") == "qwen2_5_vl",
    architecture=_architecture,
    tensors=lambda architecture: tensors(architecture, FFN),
    native="mcpmq.families.modeling_transformers:qwen2_5_vl",
    folds=(*GATED_LANGUAGE, *GATED_QWEN_VISION),
)
