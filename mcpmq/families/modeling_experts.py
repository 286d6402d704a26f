"""Experts with a module each, in the place of the stacked tensors of transformers: an expert can be loaded alone."""

from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

# The tokens of the running expert's input rows, int64 [rows]; None outside of experts, where rows are all tokens.
routed_tokens: ContextVar[Tensor | None] = ContextVar("routed_tokens", default=None)


class Expert(nn.Module):
    """A gated FFN."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs for the rows, [rows, hidden size]."""
        outputs: Tensor = self.down_proj(silu(self.gate_proj(rows)) * self.up_proj(rows))
        return outputs


class RoutedExperts(nn.ModuleList):
    """The experts of a layer; each gets the tokens that are routed to it, in the order of the sample."""

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sums of the experts' outputs, [tokens, hidden size].

        `top_k_index`, int64 [tokens, k], has the experts of every token, `top_k_weights` their weights.
        """
        total = torch.zeros_like(hidden)
        for index in sorted({int(one) for one in top_k_index.flatten()}):
            tokens, position = torch.where(top_k_index == index)
            reset = routed_tokens.set(tokens)
            outputs = self[index](hidden[tokens]) * top_k_weights[tokens, position, None]
            routed_tokens.reset(reset)
            total.index_add_(0, tokens, outputs.to(total.dtype))
        return total


def separate_experts(model: nn.Module) -> None:
    """Replace the stacked experts of every layer, in place.

    A shared expert runs before them: when the experts run, no other weight of the layer is needed.
    """
    for name, module in list(model.named_modules()):
        stack: Any = module
        if name.endswith(".experts"):
            experts = (Expert(stack.hidden_dim, stack.intermediate_dim) for _ in range(stack.num_experts))
            model.set_submodule(name, RoutedExperts(experts))
        elif hasattr(module, "shared_expert_gate"):
            vars(module)["forward"] = partial(_shared_expert_first, module)


def _shared_expert_first(moe: Any, hidden: Tensor) -> Tensor:
    rows = hidden.flatten(0, -2)
    shared = torch.sigmoid(moe.shared_expert_gate(rows)) * moe.shared_expert(rows)
    _, weights, index = moe.gate(rows)
    outputs: Tensor = moe.experts(rows, index, weights) + shared
    return outputs.reshape(hidden.shape)
