"""GPTQ with the kernels, searches and factorization of a GPU against that of the CPU.

Without a GPU all tensors pretend to be on one, and Triton interprets the kernels.
"""

from dataclasses import replace

import pytest
import torch

from mcpmq.grids import dequantize
from mcpmq.qtensor import move
from mcpmq.rounding import gptq
from mcpmq.rounding.shrinkage import choose_shrinkage
from mcpmq.rounding.stats import InputStats
from tests.rounding.oracle import grid_scheme, input_stats, random_layer
from tests.triton_device import DEVICE


def _on_device(stats: InputStats) -> InputStats:
    assert stats.held_out_inputs is not None
    return replace(stats, gram=stats.gram.to(DEVICE), held_out_inputs=stats.held_out_inputs.to(DEVICE))


def _layer(rows: int) -> tuple[torch.Tensor, torch.Tensor, InputStats]:
    """Return a weight with columns that no block divides, inputs, and their statistics."""
    weight, inputs = random_layer(rows, 40, seed=2, tokens=300)
    return weight, inputs, replace(input_stats(inputs), held_out_inputs=inputs[:60].contiguous())


def _pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))


@pytest.mark.parametrize(
    ("text", "act_order"), [("int4-g32", True), ("int4-g32-asym", False), ("iq4_nl", True), ("q4_k", True)]
)
def test_losses_are_those_of_the_cpu(text: str, act_order: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For columns in the order of their energy, and in their own order."""
    scheme = grid_scheme(text)
    weight, inputs, stats = _layer(6)
    expected = dequantize(gptq.quantize(weight, scheme, replace(stats, shrinkage=0.1), act_order))
    _pretend_gpu(monkeypatch)

    moved = replace(_on_device(stats), shrinkage=0.1)
    quantized = gptq.quantize(weight.to(DEVICE), scheme, moved, act_order)

    found = dequantize(move(quantized, torch.device("cpu")))
    losses = [float((inputs @ (values - weight).T).square().sum()) for values in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert (found == expected).double().mean() > 0.8


def test_the_chosen_shrinkage_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hessian has the held-out inputs, which are subtracted."""
    weight, _, stats = _layer(4)
    stats, scheme = replace(stats, gram_has_held_out=True), grid_scheme("int4-g32")
    expected = choose_shrinkage(weight, scheme, stats)
    _pretend_gpu(monkeypatch)

    assert choose_shrinkage(weight.to(DEVICE), scheme, _on_device(stats)) == expected
