"""Exchange between the processes of a calibration: each has a share of the samples, the first one rounds weights."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Value = TypeVar("Value")
SHARD_SAMPLES = 4  # consecutive samples of one process, whose inputs are sent together

# Index of the sample in its forward pass among those of all processes, and whether it is held out.
sample_index: ContextVar[int] = ContextVar("sample_index", default=0)
sample_is_held_out: ContextVar[bool] = ContextVar("is_held_out", default=False)


class Exchange(Protocol):
    """The processes of a calibration; all call the same methods in the same order.

    rank: of this process; 0 rounds the weights. size: number of processes.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank."""


@runtime_checkable
class InputExchange(Exchange, Protocol):
    """Processes that send the inputs of matrices to each other: equal bytes for any number of them.

    Process 0 has no samples.
    """

    def send(self, item: Any, readers: Sequence[int]) -> None:
        """Send an item to these processes; wait while one of them has not received earlier ones."""

    def receive(self, rank: int) -> Any:
        """Return the next item that a process sent to this one; they arrive in their order."""


@runtime_checkable
class AddingExchange(Exchange, Protocol):
    """Processes with a device each, whose Hessians are added: for any number of samples the same bytes are sent."""

    @property
    def device(self) -> torch.device: ...

    def add(self, tensor: Tensor) -> None:
        """Add the tensors of all processes, which have one shape, in process 0; others have no values afterwards."""


@dataclass(frozen=True, slots=True)
class OneProcess:
    """The exchange of a calibration in one process."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Value) -> list[Value]:
        return [value]


ONE_PROCESS = OneProcess()


def own_samples(count: int, exchange: Exchange) -> list[int]:
    """Return the indices of the samples of this process: shards of a fixed size, one process after the other."""
    if exchange.size == 1:
        return list(range(count))
    if isinstance(exchange, AddingExchange):
        return list(range(exchange.rank, count, exchange.size))
    workers = exchange.size - 1
    return [index for index in range(count) if index // SHARD_SAMPLES % workers == exchange.rank - 1]


def broadcast(exchange: Exchange, compute: Callable[[], Value]) -> Value:
    """Return the result of a function that process 0 calls."""
    return exchange.gather(compute() if exchange.rank == 0 else None)[0]  # type: ignore[return-value]


def add_by_sample(exchange: Exchange, values: Sequence[tuple[int, float]]) -> float:
    """Return the sum of values of samples of all processes, each with its index, in the order of the samples."""
    found = [one for values_of_rank in exchange.gather(list(values)) for one in values_of_rank]
    return sum(value for _, value in sorted(found, key=lambda one: one[0]))
