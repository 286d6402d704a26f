"""Supported model families, one file each; the raw config.json of a checkpoint selects the family."""

from collections.abc import Callable, Mapping
from typing import Any

from mcpmq.errors import ArtifactError, CheckpointError
from mcpmq.families import (
    gemma3,
    internvl,
    lfm2vl,
    minicpm3,
    minicpmo,
    minicpmv,
    minicpmv2,
    minicpmv46,
    minicpmv47,
    qwen2_5omni,
    qwen2_5vl,
    qwen2vl,
    qwen3_5,
    qwen3_moe,
    qwen3vl,
    smolvlm,
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
    minicpmv47.MINICPM_V_4_7_MOE,
    minicpm3.MINICPM3,
    qwen2vl.QWEN2_VL,
    qwen2_5vl.QWEN2_5_VL,
    qwen2_5omni.QWEN2_5_OMNI,
    qwen3vl.QWEN3_VL,
    qwen3_5.QWEN3_5,
    qwen3_moe.QWEN3_VL_MOE,
    qwen3_moe.QWEN3_5_MOE,
    smolvlm.SMOLVLM2,
    internvl.INTERNVL,
    gemma3.GEMMA_3,
    lfm2vl.LFM2_VL,
)


MIXTURES = (qwen3_moe.QWEN3_VL_MOE, qwen3_moe.QWEN3_5_MOE, minicpmv47.MINICPM_V_4_7_MOE)


def _has_unsupported_experts(config: Mapping[str, Any]) -> bool:
    """Return True for a mixture of experts of no family; dense models may have `num_experts` = 0."""
    text, model_type = config.get("text_config"), config.get("model_type")
    counts = (given.get("num_experts") for given in (config, text) if isinstance(given, Mapping))
    is_known = str(model_type).startswith(("qwen", "minicpm")) and not any(one.matches(config) for one in MIXTURES)
    return is_known and any(counts)


# Known models that are not supported: predicate on the raw config.json, reason, nearest supported family.
UNSUPPORTED_MODELS: tuple[tuple[Callable[[Mapping[str, Any]], bool], str, str], ...] = (
    (
        lambda config: config.get("model_type") == "qwen" and "visual" in config,
        "Qwen-VL and Qwen-VL-Chat of 2023 are not supported: they need remote code, and the Int4 checkpoint has only"
        " weights that are already quantized",
        "qwen2-vl, for example Qwen/Qwen2-VL-7B-Instruct",
    ),
    (
        _has_unsupported_experts,
        "this mixture-of-experts model is not supported; those of Qwen3-VL, Qwen3.5 and MiniCPM-V 4.7 are",
        "qwen3.5-moe, for example Qwen/Qwen3.5-35B-A3B",
    ),
)


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family that matches a raw config.json.

    Raises:
        CheckpointError: no family matches, or the model is not supported.
    """
    for matches, message, nearest in UNSUPPORTED_MODELS:
        if matches(config):
            raise CheckpointError(message, f"the nearest family is {nearest}")
    for family in FAMILIES:
        if family.matches(config):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    model = f"model_type `{config.get('model_type')}`, version `{config.get('version')}`"
    raise CheckpointError(f"unknown model: {model}", f"supported families: {known}")


def family_named(name: str) -> Family:
    """Return the family with a name from the manifest of an artifact.

    Raises:
        ArtifactError: the family is unknown.
    """
    found = next((family for family in FAMILIES if family.name == name), None)
    if found is None:
        raise ArtifactError(
            f"the family `{name}` of the artifact is unknown", "update mcpmq, or build the artifact again"
        )
    return found
