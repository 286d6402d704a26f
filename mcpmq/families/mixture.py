"""Families with a mixture of experts: dense families with experts in the place of the FFN."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcpmq.families.config_schema import required_table, validate_config
from mcpmq.families.expert_config import ExpertConfig
from mcpmq.families.family import Architecture, Family
from mcpmq.families.smoothing_mappings import SHARED_EXPERT

_STACKED = "the software that loads it has the experts of a layer in one tensor, which it does not quantize"
_UNTESTED = "no tested software loads experts of this family from it; use `compressed-tensors`"
UNSUPPORTED_FORMATS = (
    ("onnx", "ONNX Runtime has an operator for experts only with 4-bit weights in a layout of its own (QMoE)"),
    ("bnb", _STACKED),
    ("gptq", _UNTESTED),
    ("awq", _UNTESTED),
)


def with_experts(dense: Family, **differences: Any) -> Family:
    """Return the family with experts in the place of the FFN of a dense one, whose unsupported formats remain."""

    def parse_architecture(config: Mapping[str, Any]) -> Architecture:
        """Read the hyperparameters of the experts and of the dense family; raises CheckpointError."""
        text = required_table(config, "text_config")
        experts = validate_config(ExpertConfig, text).to_experts()
        # No layer has the FFN of this size; the configuration of Qwen3.5 does not have it.
        text.setdefault("intermediate_size", experts.intermediate_size)
        found = dense.parse_architecture({**config, "text_config": text})
        architecture = f"{found.language.gguf_architecture}moe"
        return replace(found, language=replace(found.language, gguf_architecture=architecture, experts=experts))

    return replace(
        dense,
        parse_architecture=parse_architecture,
        unsupported_formats=(*dense.unsupported_formats, *UNSUPPORTED_FORMATS),
        smoothing_mappings=(*dense.smoothing_mappings, SHARED_EXPERT),
        **differences,
    )
