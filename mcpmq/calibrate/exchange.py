"""Exchange between the processes of a calibration: each has the hidden states of its samples, the first rounds weights.

The inputs of matrices go to the first process in the order of the samples, so its sums have the bytes of a run in one
process. For fewer tokens than half of its columns, the inputs of a sample are smaller than their product X^T X.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from heapq import merge
from typing import Any, Protocol, TypeVar

from torch import Tensor

from mcpmq.calibrate.modalities import sample_modalities
from mcpmq.families.modeling_experts import routed_tokens
from mcpmq.rounding.stats import Drift, InputStats

Value = TypeVar("Value")
SHARD_SAMPLES = 4  # consecutive samples of one process

# Index of the sample in its forward pass among those of all processes, and whether it is held out.
sample_index: ContextVar[int] = ContextVar("sample_index", default=0)
sample_is_held_out: ContextVar[bool] = ContextVar("is_held_out", default=False)


class Exchange(Protocol):
    """The processes of a calibration; all call the same methods in the same order.

    rank: of this process; 0 rounds the weights, and has no samples if there are others. size: number of processes.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""

    def send(self, item: Any) -> None:
        """Send an item to process 0, which receives the items of a process in their order; None ends a stream."""

    def receive(self, rank: int) -> Any:
        """Return the next item of a process; called by process 0."""


@dataclass(frozen=True, slots=True)
class OneProcess:
    """The exchange of a calibration in one process."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Value) -> list[Value]:
        return [value]

    def send(self, item: Any) -> None:
        raise AssertionError

    def receive(self, rank: int) -> Any:
        raise AssertionError


ONE_PROCESS = OneProcess()


def own_samples(count: int, exchange: Exchange) -> list[int]:
    """Return the indices of the samples of this process: shards of a fixed size, one process after the other."""
    if exchange.size == 1:
        return list(range(count))
    workers = exchange.size - 1
    return [index for index in range(count) if index // SHARD_SAMPLES % workers == exchange.rank - 1]


def broadcast(exchange: Exchange, compute: Callable[[], Value]) -> Value:
    """Return the result of a function that process 0 calls."""
    return exchange.gather(compute() if exchange.rank == 0 else None)[0]  # type: ignore[return-value]


def add_by_sample(exchange: Exchange, values: Sequence[tuple[int, float]]) -> float:
    """Return the sum of values of samples of all processes, each with its index, in the order of the samples."""
    found = [one for values_of_rank in exchange.gather(list(values)) for one in values_of_rank]
    return sum(value for _, value in sorted(found, key=lambda one: one[0]))


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


class Observer(Protocol):
    """Accumulates inputs; see `HessianObserver`."""

    def update(self, rows: Tensor, difference: Tensor | None = None) -> None: ...

    def result(self) -> InputStats: ...


NewObserver = Callable[..., Any]  # of the number of columns, and of the drift if there is one


class Collect(Protocol):
    """Observes the samples of this process; `observers` gets the observers, by the first matrix that uses them."""

    def __call__(self, new_observer: NewObserver, *, observers: dict[str, Any]) -> dict[str, tuple[Any, ...]]: ...


@dataclass(slots=True)
class _Outbox:
    """Sends the inputs of each sample when the next one begins."""

    exchange: Exchange
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
        self.exchange.send(self.current)
        self.current, self.pending = None, []


@dataclass(slots=True)
class _Recorder:
    """An observer that sends inputs to process 0."""

    outbox: _Outbox
    of_outputs: bool | None

    def update(self, rows: Tensor, difference: Tensor | None = None) -> None:
        self.outbox.add(self, rows, difference)

    def result(self) -> "_Recorder":
        return self


def collect_from_all(exchange: Exchange, new_observer: NewObserver, collect: Collect) -> dict[str, tuple[Any, ...]]:
    """Return the statistics of the samples of all processes by parameter, in process 0; others return none.

    `collect` returns the results of its observers, which it creates with `new_observer`.
    """
    if exchange.size == 1:
        return collect(new_observer, observers={})
    if exchange.rank:
        _send_rows(exchange, collect)
        return {}
    observers: dict[str, Observer] = {}
    for sample in merge(*(_stream(exchange, rank) for rank in range(1, exchange.size)), key=lambda one: one.index):
        _replay(sample, observers, new_observer)
    names: dict[str, tuple[str, ...]] = {}
    no_names: dict[str, tuple[str, ...]] = {}
    for found in exchange.gather(no_names):
        names = {**found, **names}
    results = {name: observer.result() for name, observer in observers.items()}
    return {parameter: tuple(results[name] for name in owners) for parameter, owners in names.items()}


def _send_rows(exchange: Exchange, collect: Collect) -> None:
    recorders: dict[str, _Recorder] = {}
    outbox = _Outbox(exchange, recorders)

    def new_recorder(columns: int, drift: Drift | None = None) -> _Recorder:
        return _Recorder(outbox, drift.of_outputs if drift else None)

    found = collect(new_recorder, observers=recorders)
    outbox.flush()
    exchange.send(None)
    owners = {id(recorder): name for name, recorder in recorders.items()}
    exchange.gather({parameter: tuple(owners[id(one)] for one in parts) for parameter, parts in found.items()})


def _stream(exchange: Exchange, rank: int) -> Iterator[SampleRows]:
    while (item := exchange.receive(rank)) is not None:
        yield item


def _replay(sample: SampleRows, observers: dict[str, Observer], new_observer: NewObserver) -> None:
    """Add the inputs of a sample to the observers, as in its forward pass."""
    sample_index.set(sample.index)
    sample_is_held_out.set(sample.is_held_out)
    sample_modalities.set(sample.modalities)
    for rows in sample.rows:
        if rows.owner not in observers:
            observers[rows.owner] = new_observer(rows.inputs.shape[1], *_drift(rows))
        difference = () if rows.difference is None else (rows.difference,)
        reset = routed_tokens.set(rows.tokens)
        observers[rows.owner].update(rows.inputs, *difference)
        routed_tokens.reset(reset)


def _drift(rows: Rows) -> Iterable[Drift]:
    if rows.difference is not None and rows.of_outputs is not None:
        yield Drift(rows.of_outputs, rows.inputs.new_zeros(rows.inputs.shape[1], rows.difference.shape[1]))
