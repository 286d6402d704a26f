"""Statistics of processes with Hessians of their own: those of all samples in one process, added in another order."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mcpmq.calibrate import added_statistics, observers
from mcpmq.calibrate.exchange import ONE_PROCESS, Exchange, own_samples
from mcpmq.calibrate.observers import HessianObserver
from mcpmq.calibrate.shared_statistics import collect_from_all
from mcpmq.execution.device import CPU
from tests.calibrate.test_exchange import AddingThreadExchange, Board
from tests.calibrate.test_shared_statistics import SAMPLES, create, observe

pytestmark = pytest.mark.usefixtures("no_bfloat16", "tiles_of_eight")


def collect(exchange: Exchange, samples: Sequence[int]) -> Any:
    """Collect the statistics of these samples in one process or thread."""
    return collect_from_all(exchange, create, partial(observe, samples, None), 0)


def in_threads(count: int, samples_of: Callable[[Exchange], Sequence[int]]) -> list[Any]:
    """Return the result of every thread."""
    board = Board.of_size(count)
    exchanges = [AddingThreadExchange(rank, board) for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda exchange: collect(exchange, samples_of(exchange)), exchanges))


def rows(values: Tensor) -> set[tuple[float, ...]]:
    """Return the rows of a matrix, in no order."""
    return {tuple(row) for row in values.tolist()}


@pytest.mark.parametrize("count", [2, 3, 20])
def test_the_statistics_are_those_of_all_samples(count: int) -> None:
    """Hessians, products of the drift, held-out inputs, ranges and counts; also with processes without samples."""
    alone = collect(ONE_PROCESS, range(SAMPLES))

    first, *others = in_threads(count, lambda exchange: own_samples(SAMPLES, exchange))

    assert others == [{}] * (count - 1)
    assert first.keys() == alone.keys()
    for name, (expected,) in alone.items():
        [found] = first[name]
        assert found.token_counts == expected.token_counts
        assert found.total_weight == expected.total_weight
        assert torch.equal(found.minimum, expected.minimum)
        assert torch.equal(found.maximum, expected.maximum)
        torch.testing.assert_close(found.gram, expected.gram)
        torch.testing.assert_close(found.abs_sum, expected.abs_sum)
        assert rows(found.held_out_inputs) == rows(expected.held_out_inputs)
        assert (found.drift is None) == (expected.drift is None)
        if expected.drift:
            torch.testing.assert_close(found.drift.products, expected.drift.products)
            assert rows(found.drift.held_out) == rows(expected.drift.held_out)
            assert found.drift.of_outputs


def test_a_matrix_that_the_samples_of_one_process_use_has_their_statistics() -> None:
    """Process 0 has no samples, as for an expert that its tokens are not routed to."""
    alone = collect(ONE_PROCESS, [1, 2, 4])

    first, _ = in_threads(2, lambda exchange: [1, 2, 4] if exchange.rank else [])

    torch.testing.assert_close(first["wide"][0].gram, alone["wide"][0].gram)
    assert first["narrow"][0].token_counts == alone["narrow"][0].token_counts


def test_inputs_of_held_out_samples_are_kept_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes keep three and four; of both together six are kept, those of the first process before others."""
    monkeypatch.setattr(observers, "HELD_OUT_TOKENS", 6)
    alone = [collect(ONE_PROCESS, [sample])["wide"][0].held_out_inputs for sample in (4, 9)]

    first, _ = in_threads(2, lambda exchange: [[4], [9]][exchange.rank])

    kept = first["wide"][0].held_out_inputs
    assert [len(one) for one in alone] == [3, 4]
    assert torch.equal(kept, torch.cat(alone)[:6])


def test_without_samples_there_are_no_statistics() -> None:
    """A block that no sample passes through."""
    assert in_threads(2, lambda _: []) == [{}, {}]


def test_observers_are_created_on_the_device_of_the_process() -> None:
    """The drift of a process without samples has memory there."""
    found: list[Any] = []

    def record(columns: int, drift: Any = None) -> HessianObserver:
        found.append(drift and drift.products.device)
        return create(columns, drift)

    shape = added_statistics._Shape(5, 3, of_outputs=True)
    shape.create(record, CPU)

    assert found == [CPU]
