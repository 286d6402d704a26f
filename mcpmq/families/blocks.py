"""The blocks of a model: tensors that are loaded and written together."""

from collections.abc import Iterable


def block_name(name: str) -> str:
    """Return the block of a tensor: `language.layers.0.mlp.up` -> `language.layers.0`.

    Tensors outside of layers belong to the block of their component, except for a merger between layers, which is a
    block of its own. So is every expert of a layer: `language.layers.0.experts.5`.
    """
    parts = name.split(".")
    if parts[3:4] == ["experts"]:
        return ".".join(parts[:5])
    if parts[1:2] == ["merger"]:
        return ".".join(parts[:2])
    return ".".join(parts[:3]) if len(parts) > 2 and parts[1] == "layers" else parts[0]


def is_expert(block: str) -> bool:
    """Return whether a block is an expert, which gets only the tokens that are routed to it."""
    return ".experts." in block


def has_experts(names: Iterable[str]) -> bool:
    """Return whether tensors are those of a mixture of experts."""
    return any(map(is_expert, names))
