"""Hidden states of waiting samples are in a file, and outputs are the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from greenlet import getcurrent
from torch import Tensor, nn

from mcpmq.execution.layerwise import Replay, run_layerwise
from mcpmq.execution.spilling import MIN_NBYTES, SpillFile

ROWS = MIN_NBYTES // 16  # of four floats each: the smallest states that are spilled


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[SpillFile]:
    """An open file."""
    with SpillFile.create(tmp_path) as opened:
        yield opened


class Residual(nn.Module):
    """Layers in a row, and the input again at the end, which the forward pass refers to until then."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        states = first = x + 1
        for layer in self.layers:
            states = layer(states)
        return states + first


@torch.inference_mode()
def test_outputs_are_the_same_and_waiting_states_have_no_memory(spill: SpillFile) -> None:
    """With replays; of the states that are referred to, those of every waiting sample are in the file."""
    model, samples = Residual(), [{"x": torch.randn(ROWS + number, 4)} for number in range(5)]
    expected = [model(**one) for one in samples]
    in_memory = []

    def visit(block: nn.Module, replay: Replay) -> None:
        replay()
        states = [one() for references in spill.tensors.values() for one in references]
        in_memory.append(sum(one.untyped_storage().nbytes() for one in states if one is not None))

    found = run_layerwise(model, list(model.layers), samples, visit=visit, spill=spill)

    assert all(map(torch.equal, found, expected))
    assert in_memory == [0, 0, 0]
    slots = 2 * sum(16 * (ROWS + number) for number in range(5))
    assert spill.end == [slots]  # slots are used again: the first input and one state of every sample


@torch.inference_mode()
def test_an_error_ends_the_run(spill: SpillFile) -> None:
    """Samples that wait are given up, and the error is raised."""

    def fail(block: nn.Module, replay: Replay) -> None:
        raise RuntimeError("failed")

    model = Residual()
    with pytest.raises(RuntimeError, match="failed"):
        run_layerwise(model, list(model.layers), [{"x": torch.randn(ROWS, 4)}] * 2, visit=fail, spill=spill)


def test_small_tensors_and_memory_of_others_stay(spill: SpillFile) -> None:
    """A slot is not worth its calls for a few bytes, and memory of numpy cannot be freed."""
    small, foreign = torch.ones(ROWS - 1, 4), torch.from_numpy(torch.ones(ROWS, 4).numpy())
    for values in (small, foreign):
        with spill.without_memory(getcurrent(), values):
            assert float(values.sum()) == values.numel()

    large = torch.arange(4.0 * ROWS)
    with spill.without_memory(getcurrent(), large):
        assert large.untyped_storage().nbytes() == 0
    assert torch.equal(large, torch.arange(4.0 * ROWS))


def test_the_file_has_no_name(tmp_path: Path, spill: SpillFile) -> None:
    """Nothing is left behind, also if the process is killed."""
    values = torch.ones(ROWS, 4)
    with spill.without_memory(getcurrent(), values):
        assert not list(tmp_path.iterdir())
