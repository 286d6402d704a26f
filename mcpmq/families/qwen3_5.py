"""Qwen3.5 and Qwen3.6: the vision encoder of Qwen3-VL without DeepStack, and a text model with linear attention."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcpmq.families.config_schema import validate_config
from mcpmq.families.family import Architecture
from mcpmq.families.hybrid_language import DEFAULT_MROPE_SECTIONS, HybridConfig
from mcpmq.families.language import normalize_text_config
from mcpmq.families.qwen3vl import QWEN3_VL, VisionConfig
from mcpmq.families.smoothing_mappings import HYBRID_DECODER, QWEN_VISION


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    sizes = {**(config.get("vision_config") or {}), "deepstack_visual_indexes": ()}  # the torch class ignores the key
    text = validate_config(HybridConfig, normalize_text_config(config))
    sections = text.rope.mrope_section or DEFAULT_MROPE_SECTIONS
    language = text.to_shape("qwen35", mrope_sections=sections, mrope_interleaved=True)
    return Architecture(language, validate_config(VisionConfig, sizes).to_tower())


QWEN3_5 = replace(
    QWEN3_VL,
    name="qwen3.5",
    hub_ids=("Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-2B", "Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-9B", "Qwen/Qwen3.6-27B"),
    matches=lambda config: config.get("model_type") == "qwen3_5",
    parse_architecture=_parse_architecture,
    torch_builder="mcpmq.families.modeling_transformers:qwen3_5",
    passthrough=(("drafts", "mtp"),),
    smoothing_mappings=(*HYBRID_DECODER, *QWEN_VISION),
)
