"""MiniCPM-V 4.7: MiniCPM-V 4.6 with the tokens of all slices on one canvas."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcpmq.families.config_schema import checked
from mcpmq.families.family import Architecture
from mcpmq.families.hybrid_language import HybridConfig
from mcpmq.families.language import text_keys
from mcpmq.families.minicpmv46 import MINICPM_V_4_6
from mcpmq.families.prompt_format import Layout

SECTIONS = (11, 11, 10)  # frequencies turned by time, row and column, where a configuration does not say it


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json: those of 4.6, and positions with three axes.

    Raises:
        CheckpointError: a size is missing, out of range, or asks for what 4.6 does not have.
    """
    sections = checked(HybridConfig, text_keys(config)).rope.mrope_section or SECTIONS
    known = MINICPM_V_4_6.architecture(config)
    return replace(known, language=replace(known.language, rope_sections=sections, rope_interleaved=True))


MINICPM_V_4_7 = replace(
    MINICPM_V_4_6,
    name="minicpm-v-4.7",
    published=("openbmb/MiniCPM-V-4.7-1B",),
    recognises=lambda config: config.get("model_type") == "minicpmv4_7",
    architecture=_architecture,
    layout=Layout(placeholder="<|image_pad|>", slicing="canvas", extra="types"),
    native="mcpmq.families.modeling_transformers:minicpmv4_7",
    refusals=(
        (
            "gguf",
            "the pinned llama.cpp knows no canvas of slices: under another name it runs, and reads images wrongly",
        ),
    ),
)
