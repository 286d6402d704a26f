"""The stages of a block are its matrices by input, in the order of the forward pass."""

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.stages import Stage, StageObserver, Stream, find_stages

MATRICES = dict.fromkeys(("down.weight", "up.weight", "gate.weight"))


class Mlp(nn.Module):
    """Two linears that share an input, and one after them, which runs `repeats` times or not at all."""

    def __init__(self, repeats: int = 1) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)
        self.repeats = repeats

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        hidden: Tensor = self.gate(x).tanh() * self.up(x)
        for _ in range(0 if skip else self.repeats):
            hidden = self.down(hidden) @ torch.ones(6, 10)
        return hidden


class Attention(nn.Module):
    """Packed attention between two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        value = self.first(x)
        result: Tensor = self.last(self.attention(x, value, value, need_weights=False)[0])
        return result


def replay_of(block: nn.Module, *samples: tuple[Any, ...]) -> tuple[Callable[[Container[int]], None], range]:
    """Return a function that runs samples, and their indices."""

    def replay(only: Container[int]) -> None:
        for index, arguments in enumerate(samples):
            if index in only:
                block(*arguments)

    return replay, range(len(samples))


@torch.inference_mode()
def test_matrices_with_the_same_input_are_one_stage() -> None:
    """The order is that of the calls, not that of the names."""
    block = Mlp()
    stages = find_stages(block, MATRICES, *replay_of(block, (torch.ones(3, 6),)))
    assert stages == [Stage(("gate.weight", "up.weight")), Stage(("down.weight",))]


@torch.inference_mode()
def test_a_matrix_that_the_first_sample_skips_is_in_a_stage() -> None:
    """Samples run until all matrices were seen; a matrix that none of them runs is in no stage."""
    block = Mlp()
    skipping, all_of_it = (torch.ones(3, 6), True), (torch.ones(3, 6),)
    both = find_stages(block, MATRICES, *replay_of(block, skipping, all_of_it))
    assert both == [Stage(("gate.weight", "up.weight")), Stage(("down.weight",))]
    assert find_stages(block, MATRICES, *replay_of(block, skipping)) == [Stage(("gate.weight", "up.weight"))]


@torch.inference_mode()
def test_a_packed_projection_is_one_stage() -> None:
    """Queries, keys and values have different inputs but are one matrix."""
    block = Attention()
    names = ("attention.in_proj_weight", "attention.out_proj.weight", "last.weight", "first.weight")
    stages = find_stages(block, dict.fromkeys(names), *replay_of(block, (torch.ones(3, 8),)))
    order = ["first.weight", "attention.in_proj_weight", "attention.out_proj.weight", "last.weight"]
    assert [stage.parameters for stage in stages] == [(name,) for name in order]


@torch.inference_mode()
def test_an_observer_has_the_inputs_and_the_stream_of_every_run() -> None:
    """Matrices with the same input have it once; the output of the block is the stream. Samples are separate."""
    block, first, second = Mlp(repeats=2), torch.randn(3, 6), torch.randn(5, 6)
    shared = StageObserver(Stage(("gate.weight", "up.weight")))
    down = StageObserver(Stage(("down.weight",), Stream("", 1.0)))
    with shared.hooks(block, MATRICES), down.hooks(block, MATRICES):
        for sample in (first, second):
            shared.begin()
            down.begin()
            output = block(sample)

    hidden = block.gate(second).tanh() * block.up(second)
    again = block.down(hidden) @ torch.ones(6, 10)
    assert (shared.owners, shared.calls) == ({"gate.weight": "gate.weight", "up.weight": "gate.weight"}, 2)
    assert torch.equal(torch.cat(shared.inputs["gate.weight"]), second)
    assert not shared.states
    assert torch.equal(torch.cat(down.inputs["down.weight"]), torch.cat([hidden, again]))
    assert torch.equal(torch.cat(down.states), output)
    assert down.calls == 3
