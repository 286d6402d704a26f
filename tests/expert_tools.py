"""Experts of a layer in stacks, as published checkpoints have them."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

MATRIX = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def stack_experts(tensors: Mapping[str, Tensor], transposed: bool) -> dict[str, Tensor]:
    """Replace the matrices of single experts by stacks, of matrices [in, out] if `transposed`."""
    found = {match.groups(): tensors[match[0]] for match in filter(None, map(MATRIX.fullmatch, tensors))}
    stacks = {}
    for prefix in dict.fromkeys(prefix for prefix, _, _ in found):
        experts = range(len({expert for one, expert, _ in found if one == prefix}))
        parts = {kind: [found[prefix, str(expert), kind] for expert in experts] for kind in ("gate", "up", "down")}
        rows = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"], strict=True)]
        for name, matrices in (("gate_up_proj", rows), ("down_proj", parts["down"])):
            stack = torch.stack(matrices)
            stacks[f"{prefix}.{name}"] = (stack.transpose(1, 2) if transposed else stack).contiguous()
    return {name: value for name, value in tensors.items() if not MATRIX.fullmatch(name)} | stacks
