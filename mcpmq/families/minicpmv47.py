"""MiniCPM-V 4.7: MiniCPM-V 4.6 with position ids on one canvas for all slices, dense or with a mixture of experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcpmq.families.config_schema import validate_config
from mcpmq.families.family import Architecture
from mcpmq.families.hybrid_language import DEFAULT_MROPE_SECTIONS, HybridConfig
from mcpmq.families.language import normalize_text_config
from mcpmq.families.minicpmv46 import MINICPM_V_4_6
from mcpmq.families.mixture import with_experts
from mcpmq.families.prompt_format import PromptFormat


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json: 4.6 with M-RoPE.

    Raises:
        CheckpointError: a size is missing or out of range, or a feature is not supported.
    """
    sections = validate_config(HybridConfig, normalize_text_config(config)).rope.mrope_section or DEFAULT_MROPE_SECTIONS
    known = MINICPM_V_4_6.parse_architecture(config)
    return replace(known, language=replace(known.language, mrope_sections=sections, mrope_interleaved=True))


def _has_experts(config: Mapping[str, Any]) -> bool:
    """Return whether the text model is that of Qwen3.5 with a mixture of experts."""
    text = config.get("text_config")
    is_mixture = isinstance(text, Mapping) and text.get("model_type") == "qwen3_5_moe_text"
    return is_mixture and config.get("model_type") == "minicpmv4_7"


MINICPM_V_4_7 = replace(
    MINICPM_V_4_6,
    name="minicpm-v-4.7",
    hub_ids=("openbmb/MiniCPM-V-4.7-1B",),
    matches=lambda config: config.get("model_type") == "minicpmv4_7" and not _has_experts(config),
    parse_architecture=_parse_architecture,
    prompt_format=PromptFormat(
        image_token="<|image_pad|>", video_token="<|video_pad|>", slicing="canvas", image_span_input="types"
    ),
    torch_builder="mcpmq.families.modeling_transformers:minicpmv4_7",
    unsupported_formats=(
        (
            "gguf",
            "the pinned llama.cpp does not support the canvas position ids of this model and would give wrong results",
        ),
    ),
)
MINICPM_V_4_7_MOE = with_experts(
    MINICPM_V_4_7,
    name="minicpm-v-4.7-moe",
    hub_ids=("openbmb/MiniCPM-V-4.7-35B-A3B",),
    matches=_has_experts,
    torch_builder="mcpmq.families.modeling_transformers:minicpmv4_7_moe",
)
