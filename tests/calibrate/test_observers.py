"""Input statistics of linear layers equal sums over single tokens, for every modality and weight."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate import observers
from mcpmq.calibrate.observers import HessianObserver, HoldOut, TokenModalities, collect_stats
from mcpmq.execution.chunked_matmul import deterministic_threads, serial_map
from mcpmq.execution.device import CPU
from mcpmq.rounding.stats import MODALITIES, Drift, InputStats
from mcpmq.system.torch_threads import torch_threads

MODALITY_IDS = torch.tensor([0, 0, 1, 1, 1, 2, 2], dtype=torch.uint8)


def modalities(*weights: float) -> TokenModalities:
    return TokenModalities(
        lambda count: MODALITY_IDS[:count], torch.tensor([*(weights or (1.0, 1.0, 1.0)), 0.0], dtype=torch.float32)
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected_gram(inputs: list[Tensor], weights: list[float]) -> Tensor:
    """The sum of w x x^T in float64, token by token."""
    columns = inputs[0].shape[-1]
    total = torch.zeros(columns, columns, dtype=torch.float64)
    for one in inputs:
        for row, modality in zip(one.reshape(-1, columns).double(), MODALITY_IDS.tolist(), strict=False):
            total += weights[modality] * torch.outer(row, row)
    return total


def expected_magnitudes(inputs: list[Tensor], weights: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of w |x| in float64, and the range of x where w is not zero, token by token."""
    columns = inputs[0].shape[-1]
    absolute, lowest, highest = torch.zeros(columns, dtype=torch.float64), torch.zeros(columns), torch.zeros(columns)
    for one in inputs:
        for row, modality in zip(one.reshape(-1, columns), MODALITY_IDS.tolist(), strict=False):
            absolute += weights[modality] * row.double().abs()
            if weights[modality] > 0:
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
        result: Tensor = self.gate(x).tanh() * self.up(x)
        return result


def replay_of(block: nn.Module, *samples: tuple[Tensor, ...]) -> Callable[[], None]:
    def replay() -> None:
        for sample in samples:
            block(*sample)

    return replay


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.25, 1.0, 2.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("buffer", [1, 9, 2048])
@pytest.mark.parametrize("tile", [4, 2048])
@torch.inference_mode()
def test_statistics_equal_sums_over_single_tokens(
    weights: tuple[float, ...], buffer: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all token weights, buffer sizes and tile sizes; the Hessian is exactly symmetric."""
    monkeypatch.setattr(observers, "BUFFER_TOKENS", buffer)
    monkeypatch.setattr(observers, "TILE_COLUMNS", tile)
    block, samples = Mlp(), [random(1, length, 6, seed=length) for length in (5, 7, 6)]
    parameters = dict.fromkeys(("gate.weight", "up.weight", "down.weight"))

    found = collect_stats(block, parameters, replay_of(block, *[(one,) for one in samples]), modalities(*weights))

    expected = {"gate.weight": samples, "up.weight": samples, "down.weight": [block.hidden(one) for one in samples]}
    for name, inputs in expected.items():
        (stats,) = found[name]
        assert torch.allclose(stats.gram.double(), expected_gram(inputs, list(weights)), atol=1e-5)
        assert torch.equal(stats.gram, stats.gram.T)
        absolute, lowest, highest = expected_magnitudes(inputs, list(weights))
        assert torch.allclose(stats.abs_sum.double(), absolute, atol=1e-5)
        assert torch.equal(stats.minimum, lowest)
        assert torch.equal(stats.maximum, highest)
        assert torch.equal(stats.abs_max, torch.maximum(-lowest, highest))
        assert stats.token_counts == {"vision": 6, "text": 9, "answer": 3, "audio": 0}
        assert stats.total_weight == pytest.approx(6 * weights[0] + 9 * weights[1] + 3 * weights[2])


@torch.inference_mode()
def test_linears_with_the_same_input_share_their_statistics() -> None:
    """The Hessian of a shared input exists once."""
    block = Mlp()

    stats = collect_stats(
        block, dict.fromkeys(("gate.weight", "up.weight")), replay_of(block, (random(5, 6),)), modalities()
    )

    assert stats["gate.weight"][0] is stats["up.weight"][0]


@torch.inference_mode()
def test_statistics_are_additive() -> None:
    """The statistics of two parts of the samples add up to those of all."""
    block, samples = Mlp(), [(random(7, 6, seed=seed),) for seed in range(4)]

    def stats(part: Sequence[tuple[Tensor, ...]]) -> InputStats:
        return collect_stats(block, {"down.weight": None}, replay_of(block, *part), modalities(1, 2, 3))["down.weight"][
            0
        ]

    whole, halves = stats(samples), stats(samples[:1]) + stats(samples[1:])
    assert torch.allclose(whole.gram, halves.gram, atol=1e-4)
    assert torch.allclose(whole.abs_sum, halves.abs_sum, atol=1e-4)
    assert torch.equal(whole.minimum, halves.minimum)
    assert torch.equal(whole.maximum, halves.maximum)
    assert (whole.token_counts, whole.total_weight) == (halves.token_counts, halves.total_weight)
    assert tuple(whole.token_counts) == MODALITIES


@torch.inference_mode()
def test_statistics_are_equal_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One and four threads give the same bits, with several tiles."""
    monkeypatch.setattr(observers, "TILE_COLUMNS", 3)
    block, found = Mlp(), []
    for threads in (1, 4):
        with torch_threads(threads), deterministic_threads() as parallel_map:
            replay = replay_of(block, (random(7, 6),), (random(6, 6, seed=1),))
            found.append(
                collect_stats(block, {"down.weight": None}, replay, modalities(1, 2, 3), parallel_map)["down.weight"][0]
            )

    tensors = ((stats.gram, stats.abs_sum, stats.minimum, stats.maximum) for stats in found)
    for one, other in zip(*tensors, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("buffer", "tile"), [(1, 4), (100, 100)])
def test_products_with_the_drift_equal_sums_over_single_tokens(
    buffer: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out samples are not in the sums here; their inputs and differences are kept, weighted alike."""
    monkeypatch.setattr(observers, "BUFFER_TOKENS", buffer)
    monkeypatch.setattr(observers, "TILE_COLUMNS", tile)
    samples = [(random(7, 6, seed=seed), random(7, 3, seed=9 + seed)) for seed in range(3)]
    current = iter([False, True, False])
    hold_out = HoldOut(lambda: next(current), in_gram=False)
    observer = HessianObserver.create(modalities(1, 2, 3), serial_map, hold_out, CPU, 6, Drift(True, torch.zeros(6, 3)))

    for inputs, difference in samples:
        observer.update(inputs, difference)
    stats = observer.result()

    expected = torch.zeros(6, 3)
    for inputs, difference in (samples[0], samples[2]):
        for x, e, modality in zip(inputs, difference, MODALITY_IDS.tolist(), strict=True):
            expected += (modality + 1) * torch.outer(x, e)
    roots = (MODALITY_IDS.float() + 1).sqrt()[:, None]
    assert stats.drift is not None
    assert stats.drift.held_out is not None
    assert stats.held_out_inputs is not None
    assert stats.drift.of_outputs
    assert torch.allclose(stats.drift.products, expected, atol=1e-4)
    assert torch.allclose(stats.held_out_inputs, samples[1][0] * roots)
    assert torch.allclose(stats.drift.held_out, samples[1][1] * roots)
