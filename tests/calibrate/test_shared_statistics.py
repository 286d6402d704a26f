"""Statistics over the samples of several processes, which share the tiles of every Hessian."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mcpmq.calibrate import observers
from mcpmq.calibrate.exchange import ONE_PROCESS, Exchange, own_samples, sample_index, sample_is_held_out
from mcpmq.calibrate.modalities import sample_modalities
from mcpmq.calibrate.observers import HessianObserver, HoldOut, TokenModalities
from mcpmq.calibrate.shared_statistics import assign_tiles, collect_from_all, initial_loads
from mcpmq.execution.chunked_matmul import serial_map
from mcpmq.execution.device import CPU
from mcpmq.rounding.stats import Drift, InputStats
from tests.calibrate import test_exchange
from tests.calibrate.test_exchange import Board, ThreadExchange

pytestmark = pytest.mark.usefixtures("no_bfloat16", "tiles_of_eight")
SAMPLES, WIDE, NARROW, OUTPUTS = 11, 37, 9, 5


def inputs_of(sample: int, columns: int) -> Tensor:
    """Return inputs of a matrix, float32 [tokens, columns]; samples have different lengths."""
    return torch.randn(3 + sample % 4, columns, generator=torch.Generator().manual_seed(100 * columns + sample))


def create(columns: int, drift: Drift | None = None, tiles: Sequence[int] | None = None) -> HessianObserver:
    """Return an observer; every fifth sample is held out."""
    modalities = TokenModalities(lambda count: sample_modalities.get()[:count], torch.tensor([1.0, 0.5, 2.0, 1.0]))
    hold_out = HoldOut(sample_is_held_out.get, in_gram=False)
    return HessianObserver.create(modalities, serial_map, hold_out, CPU, columns, drift, tiles)


def observe(indices: Sequence[int], fails_at: int | None, new_observer: Any, *, observers: dict[str, Any]) -> Any:
    """Observe the inputs of two matrices over these samples; the second one has a drift."""
    for index in indices:
        if index == fails_at:
            raise RuntimeError(f"sample {index}")
        sample_index.set(index)
        sample_is_held_out.set(index % 5 == 4)
        sample_modalities.set(torch.arange(7, dtype=torch.uint8) % 3)
        for name, columns in (("wide", WIDE), ("narrow", NARROW)):
            drift = Drift(True, torch.empty(columns, OUTPUTS))
            if name not in observers:
                observers[name] = new_observer(columns, *([drift] if name == "narrow" else []))
            difference = [inputs_of(50 + index, OUTPUTS)[: len(inputs_of(index, columns))]] if name == "narrow" else []
            rows = inputs_of(index, columns)[: len(difference[0])] if difference else inputs_of(index, columns)
            observers[name].update(rows, *difference)
    return {name: (observer.result(),) for name, observer in observers.items()}


def collect(exchange: Exchange, new_observer: Callable[..., Any] = create, fails_at: int | None = None) -> Any:
    """Collect the statistics in one process or thread."""
    found = partial(observe, own_samples(SAMPLES, exchange), fails_at)
    return collect_from_all(exchange, new_observer, found, WIDE * OUTPUTS)


def in_threads(workers: int, **options: Any) -> list[Any]:
    """Return the result of every thread, or its exception."""
    board = Board.of_size(workers + 1)
    with ThreadPoolExecutor(workers + 1) as pool:
        futures = [pool.submit(collect, ThreadExchange(rank, board), **options) for rank in range(workers + 1)]
    return [one.exception() or one.result() for one in futures]


def tensors(stats: InputStats) -> list[Tensor | None]:
    """Return all tensors of statistics."""
    drift = [stats.drift.products, stats.drift.held_out] if stats.drift else []
    return [stats.gram, stats.abs_sum, stats.minimum, stats.maximum, stats.held_out_inputs, *drift]


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_statistics_have_the_bytes_of_one_process(workers: int) -> None:
    """Hessians of several tiles, products of the drift, held-out inputs, ranges and counts; workers have no result."""
    alone = collect(ONE_PROCESS)

    first, *others = in_threads(workers)

    assert others == [{}] * workers
    assert list(first) == ["wide", "narrow"]
    for name, (stats,) in alone.items():
        [found] = first[name]
        assert (found.token_counts, found.total_weight) == (stats.token_counts, stats.total_weight)
        for one, other in zip(tensors(found), tensors(stats), strict=True):
            assert one is not None
            assert other is not None
            assert one.numpy().tobytes() == other.numpy().tobytes()
    assert torch.equal(first["wide"][0].gram, first["wide"][0].gram.T)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other threads fail soon when a thread ended; process 0 of a cluster detects that."""
    monkeypatch.setattr(test_exchange, "SECONDS", 2)


@pytest.mark.usefixtures("short_wait")
def test_an_error_in_the_forward_pass_of_a_worker_is_its_error() -> None:
    """No process waits for the inputs of the other samples of the worker."""
    found = in_threads(2, fails_at=5)

    assert isinstance(found[2], RuntimeError)
    assert str(found[2]) == "sample 5"


@pytest.mark.usefixtures("short_wait")
def test_an_error_of_the_statistics_of_a_worker_is_its_error() -> None:
    """It still receives all inputs, so the senders end."""

    def fail_for_one_tile(columns: int, drift: Drift | None = None, tiles: Sequence[int] = ()) -> HessianObserver:
        if columns == WIDE and 8 in tiles:
            raise MemoryError("no memory for the tiles")
        return create(columns, drift, tiles)

    _, failed, *others = in_threads(3, new_observer=fail_for_one_tile)

    assert isinstance(failed, MemoryError)
    assert not any(isinstance(one, MemoryError) for one in others)


@pytest.mark.parametrize(("columns", "processes", "limit"), [(18944, 9, 1.05), (18944, 3, 1.01), (3584, 4, 1.85)])
def test_tiles_are_distributed_by_their_size(
    columns: int, processes: int, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tile has one process; the largest share is near the mean, as far as the number of tiles allows."""
    monkeypatch.setattr(observers, "TILE_COLUMNS", 1024)
    loads = [0] * processes

    ranks = assign_tiles(columns, loads)

    assert list(ranks) == list(range(0, columns, 1024))
    assert sum(loads) == sum(min(1024, columns - tile) * (columns - tile) for tile in ranks)
    assert max(loads) <= limit * sum(loads) / processes
    assert set(ranks.values()) == set(range(processes))


def test_tiles_of_the_next_input_go_to_processes_with_less_work() -> None:
    """Three inputs with one tile each are multiplied in three processes."""
    loads = [0] * 3

    assert [assign_tiles(8, loads) for _ in range(3)] == [{0: 0}, {0: 1}, {0: 2}]


def test_processes_with_samples_multiply_fewer_tiles() -> None:
    """Two workers share the products of 200 weights; process 0 first gets tiles with as many products."""
    loads = initial_loads(200, 3)
    assert loads == [0, 100, 100]

    assert [assign_tiles(8, loads)[0] for _ in range(5)] == [0, 0, 1, 2, 0]
