"""What linears see is summed exactly, by modality, whatever module holds the matrix."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate import observers as observing
from mcpmq.calibrate.observers import Labels, observe
from mcpmq.execution.chunked_matmul import all_threads, torch_threads
from mcpmq.rounding.stats import MODALITIES, LayerStats

KINDS = torch.tensor([0, 0, 1, 1, 1, 2, 2], dtype=torch.uint8)


def labels(*weights: float) -> Labels:
    return Labels(lambda count: KINDS[:count], torch.tensor(weights or (1.0, 1.0, 1.0), dtype=torch.float32))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute(inputs: list[Tensor], weights: list[float]) -> Tensor:
    """The sum of w x xT over every token, one by one, in float64."""
    columns = inputs[0].shape[-1]
    total = torch.zeros(columns, columns, dtype=torch.float64)
    for one in inputs:
        for row, kind in zip(one.reshape(-1, columns).double(), KINDS.tolist(), strict=False):
            total += weights[kind] * torch.outer(row, row)
    return total


def brute_magnitudes(inputs: list[Tensor], weights: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of w |x| in float64, and the least and greatest x where w is not zero, over every token, one by one."""
    columns = inputs[0].shape[-1]
    absolute, lowest, highest = torch.zeros(columns, dtype=torch.float64), torch.zeros(columns), torch.zeros(columns)
    for one in inputs:
        for row, kind in zip(one.reshape(-1, columns), KINDS.tolist(), strict=False):
            absolute += weights[kind] * row.double().abs()
            if weights[kind] > 0:
                lowest, highest = torch.minimum(lowest, row), torch.maximum(highest, row)
    return absolute, lowest, highest


class Mlp(nn.Module):
    """Two linears that share an input, and one after them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.gate(x).tanh() * self.up(x))
        return result

    def hidden(self, x: Tensor) -> Tensor:
        return self.gate(x).tanh() * self.up(x)


def replay_of(block: nn.Module, *samples: tuple[Tensor, ...]) -> Callable[[], None]:
    def replay() -> None:
        for sample in samples:
            block(*sample)

    return replay


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.25, 1.0, 2.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("waiting", [1, 9, 2048])
@pytest.mark.parametrize("tile", [4, 2048])
@torch.inference_mode()
def test_sums_are_those_of_single_tokens(
    weights: tuple[float, ...], waiting: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weighting, however many rows wait and however the columns are cut; the matrix is symmetric to the bit."""
    monkeypatch.setattr(observing, "WAITING_TOKENS", waiting)
    monkeypatch.setattr(observing, "TILE_COLUMNS", tile)
    block, samples = Mlp(), [random(1, length, 6, seed=length) for length in (5, 7, 6)]
    parameters = dict.fromkeys(("gate.weight", "up.weight", "down.weight"))

    seen = observe(block, parameters, replay_of(block, *[(one,) for one in samples]), labels(*weights))

    expected = {"gate.weight": samples, "up.weight": samples, "down.weight": [block.hidden(one) for one in samples]}
    for name, inputs in expected.items():
        (stats,) = seen[name]
        assert torch.allclose(stats.gram.double(), brute(inputs, list(weights)), atol=1e-5)
        assert torch.equal(stats.gram, stats.gram.T)
        absolute, lowest, highest = brute_magnitudes(inputs, list(weights))
        assert torch.allclose(stats.absolute.double(), absolute, atol=1e-5)
        assert torch.equal(stats.lowest, lowest)
        assert torch.equal(stats.highest, highest)
        assert torch.equal(stats.largest, torch.maximum(-lowest, highest))
        assert stats.tokens == {"vision": 6, "text": 9, "answer": 3}
        assert stats.weight == pytest.approx(6 * weights[0] + 9 * weights[1] + 3 * weights[2])


@torch.inference_mode()
def test_linears_that_are_fed_the_same_share_one_sum() -> None:
    """A matrix of columns squared is not held twice."""
    block = Mlp()

    seen = observe(block, dict.fromkeys(("gate.weight", "up.weight")), replay_of(block, (random(5, 6),)), labels())

    assert seen["gate.weight"][0] is seen["up.weight"][0]


@torch.inference_mode()
def test_statistics_add_up() -> None:
    """Two halves of the samples are the whole."""
    block, samples = Mlp(), [(random(7, 6, seed=seed),) for seed in range(4)]

    def stats(part: list[tuple[Tensor, ...]]) -> LayerStats:
        return observe(block, {"down.weight": None}, replay_of(block, *part), labels(1, 2, 3))["down.weight"][0]

    whole, halves = stats(samples), stats(samples[:1]) + stats(samples[1:])
    assert torch.allclose(whole.gram, halves.gram, atol=1e-4)
    assert torch.allclose(whole.absolute, halves.absolute, atol=1e-4)
    assert torch.equal(whole.lowest, halves.lowest)
    assert torch.equal(whole.highest, halves.highest)
    assert (whole.tokens, whole.weight) == (halves.tokens, halves.weight)
    assert tuple(whole.tokens) == MODALITIES


@torch.inference_mode()
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and however many tiles they share."""
    monkeypatch.setattr(observing, "TILE_COLUMNS", 3)
    block, found = Mlp(), []
    for threads in (1, 4):
        with torch_threads(threads), all_threads() as each:
            replay = replay_of(block, (random(7, 6),), (random(6, 6, seed=1),))
            found.append(observe(block, {"down.weight": None}, replay, labels(1, 2, 3), each)["down.weight"][0])

    tensors = ((stats.gram, stats.absolute, stats.lowest, stats.highest) for stats in found)
    for one, other in zip(*tensors, strict=True):
        assert torch.equal(one, other)
