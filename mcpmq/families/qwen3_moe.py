"""Qwen3-VL and Qwen3.5 with a mixture of experts."""

from mcpmq.families.mixture import with_experts
from mcpmq.families.qwen3_5 import QWEN3_5
from mcpmq.families.qwen3vl import QWEN3_VL

QWEN3_VL_MOE = with_experts(
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
QWEN3_5_MOE = with_experts(
    QWEN3_5,
    name="qwen3.5-moe",
    hub_ids=("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.6-35B-A3B"),
    matches=lambda config: config.get("model_type") == "qwen3_5_moe",
    torch_builder="mcpmq.families.modeling_transformers:qwen3_5_moe",
)
