"""Tensors of a mixture of experts: the router, a shared expert, and a matrix of each kind for every expert."""

from collections.abc import Iterator

from mcpmq.families.expert_shape import Experts
from mcpmq.families.family import TensorSpec

HUB_NAMES = {"mlp.gate": "gate_proj", "mlp.up": "up_proj", "mlp.down": "down_proj"}


def expert_specs(experts: Experts, hidden_size: int, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """Yield the tensors in the place of the FFN of a layer; routers are not quantized.

    `hub_name` is that of the FFN. Checkpoints have the experts of a layer in stacks, which are read as single matrices.
    """
    yield TensorSpec(f"{name}.router", f"{hub_name}.gate.weight", (experts.count, hidden_size))
    if experts.shared_intermediate_size:
        yield TensorSpec(f"{name}.shared.router", f"{hub_name}.shared_expert_gate.weight", (1, hidden_size))
        sizes = experts.shared_intermediate_size, hidden_size
        yield from _ffn_specs(*sizes, f"{name}.shared", f"{hub_name}.shared_expert")
    for expert in range(experts.count):
        sizes = experts.intermediate_size, hidden_size
        yield from _ffn_specs(*sizes, f"{name}.experts.{expert}", f"{hub_name}.experts.{expert}")


def _ffn_specs(intermediate_size: int, hidden_size: int, name: str, hub_name: str) -> Iterator[TensorSpec]:
    for part, hub_part in HUB_NAMES.items():
        shape = (intermediate_size, hidden_size)
        shape = shape[::-1] if part == "mlp.down" else shape
        yield TensorSpec(f"{name}.{part}", f"{hub_name}.{hub_part}.weight", shape, "matrix")
