"""What a model is made of: one file a family, found by its raw config.json."""

from collections.abc import Callable, Mapping
from typing import Any

from mcpmq.errors import CheckpointError
from mcpmq.families import (
    minicpm3,
    minicpmo,
    minicpmv,
    minicpmv2,
    minicpmv46,
    minicpmv47,
    qwen2_5vl,
    qwen2vl,
    qwen3vl,
)
from mcpmq.families.family import Family

FAMILIES: tuple[Family, ...] = (
    minicpmv2.MINICPM_V_2_0,
    minicpmv.MINICPM_V_2_5,
    minicpmv.MINICPM_V_2_6,
    minicpmv.MINICPM_V_4_0,
    minicpmv.MINICPM_V_4_5,
    minicpmo.MINICPM_O_2_6,
    minicpmv46.MINICPM_V_4_6,
    minicpmv47.MINICPM_V_4_7,
    minicpm3.MINICPM3,
    qwen2vl.QWEN2_VL,
    qwen2_5vl.QWEN2_5_VL,
    qwen3vl.QWEN3_VL,
)


def _has_experts(config: Mapping[str, Any]) -> bool:
    """Of a Qwen or MiniCPM-V; dense ones may have the key too, and 0 under it."""
    text = config.get("text_config")
    counts = (given.get("num_experts") for given in (config, text) if isinstance(given, Mapping))
    return str(config.get("model_type")).startswith(("qwen", "minicpm")) and any(counts)


# Models that are recognised and not supported: by their raw config.json, why, and what comes nearest.
REFUSED: tuple[tuple[Callable[[Mapping[str, Any]], bool], str, str], ...] = (
    (
        lambda config: config.get("model_type") == "qwen" and "visual" in config,
        "Qwen-VL and Qwen-VL-Chat of 2023 are not supported: only their own code can run them, and of the Int4"
        " checkpoint the integers of another quantizer are all there is",
        "qwen2-vl, for example Qwen/Qwen2-VL-7B-Instruct",
    ),
    (
        _has_experts,
        "mixtures of experts, MiniCPM-V-4.7-35B-A3B and Qwen3-VL-30B-A3B among them, are not supported: the experts of"
        " a layer share one tensor, and calibration would have to follow which of them sees a token",
        "a dense one, for example openbmb/MiniCPM-V-4.7-1B or Qwen/Qwen3-VL-8B-Instruct",
    ),
)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that recognises a raw config.json.

    Raises:
        CheckpointError: none does, or it is of a model that is refused.
    """
    for refuses, message, nearest in REFUSED:
        if refuses(config):
            raise CheckpointError(message, f"the nearest family is {nearest}")
    for family in FAMILIES:
        if family.recognises(config):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    what = f"model_type `{config.get('model_type')}`, version `{config.get('version')}`"
    raise CheckpointError(f"no family recognises {what}", f"supported: {known}")


def family_named(name: str) -> Family:
    """The family that an artifact's manifest names."""
    return next(family for family in FAMILIES if family.name == name)
