"""Qwen3-VL and Qwen3.5 with a mixture of experts: the dense models with experts in the place of the FFN."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mcpmq.families.config_schema import required_table, validate_config
from mcpmq.families.expert_config import ExpertConfig
from mcpmq.families.family import Architecture, Family
from mcpmq.families.qwen3_5 import QWEN3_5
from mcpmq.families.qwen3vl import QWEN3_VL
from mcpmq.families.smoothing_mappings import SHARED_EXPERT

_STACKED = "the software that loads it has the experts of a layer in one tensor, which it does not quantize"
_UNTESTED = "no tested software loads experts of this family from it; use `compressed-tensors`"
UNSUPPORTED_FORMATS = (
    ("onnx", "ONNX Runtime has an operator for experts only with 4-bit weights in a layout of its own (QMoE)"),
    ("bnb", _STACKED),
    ("gptq", _UNTESTED),
    ("awq", _UNTESTED),
)


def _with_experts(dense: Family, **differences: Any) -> Family:
    """Return the family with experts in the place of the FFN of a dense one."""

    def parse_architecture(config: Mapping[str, Any]) -> Architecture:
        """Read the hyperparameters of the experts and of the dense family; raises CheckpointError."""
        text = required_table(config, "text_config")
        experts = validate_config(ExpertConfig, text).to_experts()
        # No layer has the FFN of this size; the configuration of Qwen3.5 does not have it.
        text.setdefault("intermediate_size", experts.intermediate_size)
        found = dense.parse_architecture({**config, "text_config": text})
        architecture = f"{found.language.gguf_architecture}moe"
        return replace(found, language=replace(found.language, gguf_architecture=architecture, experts=experts))

    mappings = (*dense.smoothing_mappings, SHARED_EXPERT)
    return replace(
        dense,
        parse_architecture=parse_architecture,
        unsupported_formats=UNSUPPORTED_FORMATS,
        smoothing_mappings=mappings,
        **differences,
    )


QWEN3_VL_MOE = _with_experts(
    QWEN3_VL,
    name="qwen3-vl-moe",
    hub_ids=("Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
    matches=lambda config: config.get("model_type") == "qwen3_vl_moe",
    torch_builder="mcpmq.families.modeling_transformers:qwen3_vl_moe",
    caveats=(
        (
            "compressed-tensors",
            "each expert has packed matrices, as llm-compressor writes them; transformers 5.23 alone has no mapping to"
            " its stacks, and mcpmq loads them with a module for each expert",
        ),
    ),
)
QWEN3_5_MOE = _with_experts(
    QWEN3_5,
    name="qwen3.5-moe",
    hub_ids=("Qwen/Qwen3.5-35B-A3B",),
    matches=lambda config: config.get("model_type") == "qwen3_5_moe",
    torch_builder="mcpmq.families.modeling_transformers:qwen3_5_moe",
)
