"""Statistics of the inputs of a block over the samples of all processes, which share the products of the inputs.

Every process gets the inputs of all samples in their order and multiplies some tiles of every Hessian: the tiles have
the bytes of a run in one process, for any number of processes. Process 0 receives the tiles. For fewer tokens than half
of its columns, the inputs of a sample are smaller than their product X^T X.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import merge
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from mcpmq.calibrate.added_statistics import Collect, NewObserver, add_from_all, owners_by_parameter
from mcpmq.calibrate.exchange import AddingExchange, Exchange, InputExchange, sample_index, sample_is_held_out
from mcpmq.calibrate.modalities import sample_modalities
from mcpmq.calibrate.observers import HessianObserver, tile_starts
from mcpmq.families.modeling_experts import routed_tokens
from mcpmq.rounding.stats import Drift


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs of matrices, float32 [tokens, columns], and their difference from the original model, if it is observed.

    owner: the first matrix with these inputs. of_outputs: see `Drift`; None without a difference. tokens: those of the
    rows in an expert, int64 [tokens]; None outside of experts.
    """

    owner: str
    inputs: Tensor
    difference: Tensor | None
    of_outputs: bool | None
    tokens: Tensor | None


@dataclass(frozen=True, slots=True)
class SampleRows:
    """All inputs of one sample."""

    index: int
    is_held_out: bool
    modalities: Tensor
    rows: list[Rows]


def collect_from_all(
    exchange: Exchange, new_observer: NewObserver, collect: Collect, weights: int
) -> dict[str, tuple[Any, ...]]:
    """Return the statistics of the samples of all processes by parameter, in process 0; others return none.

    `collect` returns the results of its observers, which it creates with `new_observer`. `weights` are those that the
    samples are multiplied with: a process with more samples multiplies fewer tiles.
    """
    if exchange.size == 1:
        return collect(new_observer, observers={})
    if isinstance(exchange, AddingExchange):
        return add_from_all(exchange, new_observer, collect)
    assert isinstance(exchange, InputExchange)
    statistics = _SharedStatistics(exchange, new_observer, initial_loads(weights, exchange.size))
    owners: dict[str, tuple[str, ...]] = {}
    if exchange.rank:
        with _in_background(statistics.add_samples) as turn:
            owners = _send_rows(exchange, collect, turn)
        statistics.send_tiles()
    else:
        statistics.add_samples(Lock())
        statistics.receive_tiles()
    names: dict[str, tuple[str, ...]] = {}
    for found in exchange.gather(owners):
        names = {**found, **names}
    if exchange.rank:
        return {}
    results = {name: observer.result() for name, observer in statistics.observers.items()}
    return {parameter: tuple(results[name] for name in parts) for parameter, parts in names.items()}


@contextmanager
def _in_background(work: Callable[[Lock], None]) -> Iterator[Lock]:
    """Call `work` in a thread with one thread of torch, until it ends; its argument, yielded too, is the turn of one.

    Only the thread that has the turn computes: the precision of products is a setting of the process.
    """
    turn, inference = Lock(), torch.is_inference_mode_enabled()

    def call() -> None:
        with torch.inference_mode(inference):  # threads do not inherit the mode
            work(turn)

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        future = pool.submit(call)
        with turn:
            yield turn
        future.result()


def _send_rows(exchange: InputExchange, collect: Collect, turn: Lock) -> dict[str, tuple[str, ...]]:
    """Send the inputs of the samples of this process to all; return the owners of the inputs by parameter."""
    recorders: dict[str, _Recorder] = {}
    outbox = _Outbox(exchange, turn, recorders)

    def new_recorder(columns: int, drift: Drift | None = None) -> _Recorder:
        return _Recorder(outbox, drift.of_outputs if drift else None)

    try:
        found = collect(new_recorder, observers=recorders)
        outbox.flush()
    finally:
        outbox.send(None)  # also after an error, for which the other processes do not wait
    return owners_by_parameter(recorders, found)


@dataclass(slots=True)
class _Outbox:
    """Sends the inputs of each sample when the next one begins."""

    exchange: InputExchange
    turn: Lock  # of this thread, except while it sends
    recorders: dict[str, "_Recorder"]  # by owner
    current: SampleRows | None = None
    pending: list[tuple["_Recorder", Tensor, Tensor | None, Tensor | None]] = field(default_factory=list)

    def add(self, recorder: "_Recorder", rows: Tensor, difference: Tensor | None) -> None:
        if self.current is None or self.current.index != sample_index.get():
            self.flush()
            self.current = SampleRows(sample_index.get(), sample_is_held_out.get(), sample_modalities.get(), [])
        self.pending.append((recorder, rows.clone(), difference, routed_tokens.get()))

    def flush(self) -> None:
        """Send the inputs of the present sample."""
        if self.current is None:
            return
        owners = {id(recorder): name for name, recorder in self.recorders.items()}
        for recorder, rows, difference, tokens in self.pending:
            self.current.rows.append(Rows(owners[id(recorder)], rows, difference, recorder.of_outputs, tokens))
        self.send(self.current)
        self.current, self.pending = None, []

    def send(self, item: SampleRows | None) -> None:
        """Send an item to all processes; None ends the stream. Meanwhile the other thread has the turn."""
        self.turn.release()
        try:
            self.exchange.send(item, range(self.exchange.size))
        finally:
            self.turn.acquire()


@dataclass(slots=True)
class _Recorder:
    """An observer that sends inputs to all processes."""

    outbox: _Outbox
    of_outputs: bool | None

    def update(self, rows: Tensor, difference: Tensor | None = None) -> None:
        self.outbox.add(self, rows, difference)

    def result(self) -> "_Recorder":
        return self


@dataclass(slots=True)
class _SharedStatistics:
    """The observers of one process for the samples of all, and the process that multiplies each tile."""

    exchange: InputExchange
    new_observer: NewObserver
    loads: list[int]  # of every process
    observers: dict[str, HessianObserver] = field(default_factory=dict)  # by owner
    ranks: dict[str, dict[int, int]] = field(default_factory=dict)  # by owner, by the first column of a tile

    def add_samples(self, turn: Lock) -> None:
        """Add the inputs of all samples in their order.

        After an error the remaining inputs are still received, because their senders wait for it.
        """
        error: Exception | None = None
        for sample in merge(*map(self._stream, range(1, self.exchange.size)), key=lambda one: one.index):
            if error is None:
                try:
                    with turn:
                        self._add(sample)
                except Exception as found:
                    error = found
        if error:
            raise error

    def _stream(self, rank: int) -> Iterator[SampleRows]:
        while (item := self.exchange.receive(rank)) is not None:
            yield item

    def _add(self, sample: SampleRows) -> None:
        """Add the inputs of a sample to the observers, as in its forward pass."""
        sample_index.set(sample.index)
        sample_is_held_out.set(sample.is_held_out)
        sample_modalities.set(sample.modalities)
        for rows in sample.rows:
            if rows.owner not in self.observers:
                self.observers[rows.owner] = self._create(rows)
            difference = () if rows.difference is None else (rows.difference,)
            reset = routed_tokens.set(rows.tokens)
            self.observers[rows.owner].update(rows.inputs, *difference)
            routed_tokens.reset(reset)

    def _create(self, rows: Rows) -> HessianObserver:
        columns, drift = rows.inputs.shape[1], None
        if rows.difference is not None and rows.of_outputs is not None:
            drift = Drift(rows.of_outputs, rows.inputs.new_empty(columns, rows.difference.shape[1]))
        self.ranks[rows.owner] = ranks = assign_tiles(columns, self.loads)
        own = [tile for tile, rank in ranks.items() if rank == self.exchange.rank]
        observer: HessianObserver = self.new_observer(columns, drift, own)
        return observer

    def send_tiles(self) -> None:
        """Send the tiles of this process to process 0."""
        for observer in self.observers.values():
            observer.finish()
            for tile in observer.tiles:
                self.exchange.send([part.clone() for part in observer.products(tile)], [0])

    def receive_tiles(self) -> None:
        """Complete the Hessians, and the products of the drift, with the tiles of the other processes."""
        for owner, observer in self.observers.items():
            for tile, rank in self.ranks[owner].items():
                if rank:
                    for own, received in zip(observer.products(tile), self.exchange.receive(rank), strict=True):
                        own.copy_(received)


def initial_loads(weights: int, processes: int) -> list[int]:
    """Return the products of each process for a token of all samples in forward passes; process 0 has no samples."""
    return [0, *[weights // (processes - 1)] * (processes - 1)]


def assign_tiles(columns: int, loads: list[int]) -> dict[int, int]:
    """Return the process that multiplies each tile of a Hessian, by the first column of the tile.

    It is the first of those with the least work; `loads` has the products of each process for a token, which grow here.
    """
    ranks, starts = {}, tile_starts(columns)
    for tile in starts:
        ranks[tile] = loads.index(min(loads))
        loads[ranks[tile]] += min(starts.step, columns - tile) * (columns - tile)
    return ranks
