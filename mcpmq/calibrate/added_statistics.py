"""Statistics of the inputs of a block over the samples of all processes, each of which has Hessians of its own.

The Hessians are added in process 0, so that the exchanged bytes do not depend on the number of tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mcpmq.calibrate.exchange import AddingExchange
from mcpmq.calibrate.observers import HessianObserver, KeptInputs
from mcpmq.rounding.stats import Drift

NewObserver = Callable[..., Any]  # of the number of columns; of the drift, if there is one; of the tiles to multiply


class Collect(Protocol):
    """Observes the samples of this process; `observers` gets the observers, by the first matrix that uses them."""

    def __call__(self, new_observer: NewObserver, *, observers: dict[str, Any]) -> dict[str, tuple[Any, ...]]: ...


@dataclass(frozen=True, slots=True)
class _OwnObserver:
    """The observer of this process, which is not finished by its result."""

    observer: HessianObserver

    def update(self, rows: Tensor, difference: Tensor | None = None) -> None:
        self.observer.update(rows, difference)

    def result(self) -> "_OwnObserver":
        return self


@dataclass(frozen=True, slots=True)
class _Shape:
    """The shape of the statistics of some inputs; `outputs` is the number of columns of the drift, if there is one."""

    columns: int
    outputs: int | None
    of_outputs: bool

    @classmethod
    def of(cls, observer: HessianObserver) -> "_Shape":
        drift = observer.drift
        return cls(len(observer.gram), drift.products.shape[1] if drift else None, bool(drift and drift.of_outputs))

    def create(self, new_observer: NewObserver, device: torch.device) -> HessianObserver:
        """Return an observer without inputs."""
        drift = None
        if self.outputs is not None:
            drift = Drift(self.of_outputs, torch.empty(self.columns, self.outputs, device=device))
        found: HessianObserver = new_observer(self.columns, *([drift] if drift else []))
        return found


def owners_by_parameter(
    observers: Mapping[str, object], found: Mapping[str, tuple[object, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return the first matrices that use the observers of each parameter; `found` has observers by parameter."""
    owners = {id(observer): owner for owner, observer in observers.items()}
    return {parameter: tuple(owners[id(one)] for one in parts) for parameter, parts in found.items()}


def add_from_all(exchange: AddingExchange, new_observer: NewObserver, collect: Collect) -> dict[str, tuple[Any, ...]]:
    """Return the statistics of the samples of all processes by parameter, in process 0; others return none."""
    own: dict[str, _OwnObserver] = {}
    found = collect(lambda *arguments: _OwnObserver(new_observer(*arguments)), observers=own)
    shapes = {owner: _Shape.of(one.observer) for owner, one in own.items()}
    names: dict[str, tuple[str, ...]] = {}
    all_shapes: dict[str, _Shape] = {}
    for names_of_one, shapes_of_one in exchange.gather((owners_by_parameter(own, found), shapes)):
        names, all_shapes = {**names_of_one, **names}, {**shapes_of_one, **all_shapes}
    results: dict[str, Any] = {}
    for owner, shape in sorted(all_shapes.items()):
        observer = own.pop(owner).observer if owner in own else shape.create(new_observer, exchange.device)
        _add(exchange, observer)
        if exchange.rank == 0:
            results[owner] = observer.result()
    return {parameter: tuple(results[one] for one in parts) for parameter, parts in names.items()} if results else {}


def _add(exchange: AddingExchange, observer: HessianObserver) -> None:
    """Add the statistics of all processes to those of process 0."""
    observer.finish()
    for part in _sums(observer):
        exchange.add(part)
    ranges = observer.minimum, observer.maximum, observer.token_counts, observer.total_weight
    minima, maxima, token_counts, weights = zip(*exchange.gather(ranges), strict=True)
    observer.minimum, observer.maximum = torch.stack(minima).amin(0), torch.stack(maxima).amax(0)
    observer.token_counts = sum(token_counts[1:], token_counts[0])
    observer.total_weight = sum(weights)
    observer.held_out = _joined_held_out(exchange, observer)


def _sums(observer: HessianObserver) -> Iterator[Tensor]:
    for tile in observer.tiles:
        yield from observer.products(tile)
    yield observer.abs_sum


def _joined_held_out(exchange: AddingExchange, observer: HessianObserver) -> KeptInputs | None:
    """Return the held-out inputs of all processes in process 0, those of the first processes if they are too many."""
    own = observer.held_out
    counts = exchange.gather(own.count if own else 0)
    if not any(counts):
        return None
    joined = KeptInputs.create(len(observer.gram), _differences(observer), observer.gram.device)
    end = sum(counts[: exchange.rank + 1])
    rows = slice(end - counts[exchange.rank], min(end, len(joined.inputs)))
    joined.count = min(sum(counts), len(joined.inputs))
    for name in ("inputs", "difference"):
        values = getattr(joined, name)[: joined.count].zero_()
        if own and own.count:
            values[rows] = getattr(own, name)[: len(values[rows])]
        exchange.add(values)
    return joined


def _differences(observer: HessianObserver) -> int:
    return observer.drift.products.shape[1] if observer.drift else 0
