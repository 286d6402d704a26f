"""Choose one option for every weight, with the least loss under size limits: a multiple-choice knapsack.

The method is mixed-integer linear programming by branch and bound (HiGHS, highs.dev, through scipy). It has no time
limit and no randomness: equal options give equal choices.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

LOSS_SCALE = 1e6  # of the largest possible loss; the solver ignores differences below 1e-6
RELATIVE_GAP = 1e-6  # between the loss of the choice and that of the optimum


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a weight."""

    scheme: str
    nbytes: int
    loss: float  # not negative, and additive over weights


@dataclass(frozen=True, slots=True)
class Limit:
    """The maximum total size of the weights of some components."""

    components: tuple[str, ...]
    nbytes: int

    def covers(self, name: str) -> bool:
        return name.partition(".")[0] in self.components


@dataclass(frozen=True, slots=True)
class Removal:
    """The weights of a layer, which can be removed together."""

    layer: str
    weights: tuple[str, ...]
    loss: float  # of the model without the layer


@dataclass(frozen=True, slots=True)
class Removals:
    """Layers that may be removed, and how many of them at most."""

    layers: tuple[Removal, ...] = ()
    most: int = 0


NO_REMOVALS = Removals()


def solve(
    options: Mapping[str, Sequence[Option]], limits: Sequence[Limit], removals: Removals = NO_REMOVALS
) -> dict[str, Option] | None:
    """Return the option of every weight with the least total loss; None if no choice is within the limits.

    A removed layer has no bytes; its weights are not in the result.
    """
    candidates = {name: _pareto_optimal(several) for name, several in options.items()}
    flat = [(name, option) for name, several in candidates.items() for option in several]
    layers = removals.layers
    losses = np.array([*(option.loss for _, option in flat), *(layer.loss for layer in layers)])
    max_loss = sum(max(option.loss for option in several) for several in candidates.values())
    max_loss += sum(layer.loss for layer in layers)
    constraints = [_one_each(candidates, flat, layers), *(_constraint(flat, limit, len(layers)) for limit in limits)]
    if layers:
        counts = csr_array([[0.0] * len(flat) + [1.0] * len(layers)])
        constraints.append(LinearConstraint(counts, 0, removals.most))
    with _stdout_discarded():
        solution = milp(
            losses / max_loss * LOSS_SCALE if max_loss else losses,
            integrality=np.ones(len(losses)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": RELATIVE_GAP},
        )
    if solution.x is None:
        return None
    return {name: option for (name, option), chosen in zip(flat, solution.x, strict=False) if chosen > 0.5}


def _one_each(
    candidates: Mapping[str, Sequence[Option]], flat: Sequence[tuple[str, Option]], layers: Sequence[Removal]
) -> LinearConstraint:
    """Return the constraint that every weight has one option, or its layer is removed."""
    indices = {name: index for index, name in enumerate(candidates)}
    entries = [(indices[name], column) for column, (name, _) in enumerate(flat)]
    entries += [(indices[name], len(flat) + number) for number, one in enumerate(layers) for name in one.weights]
    rows, columns = zip(*entries, strict=True)
    shape = len(candidates), len(flat) + len(layers)
    return LinearConstraint(csr_array((np.ones(len(entries)), (rows, columns)), shape=shape), 1, 1)


@contextmanager
def _stdout_discarded() -> Iterator[None]:
    """Discard output to file descriptor 1, because the solver prints there and it is for results."""
    sys.stdout.flush()
    original = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 1)
        yield
    finally:
        os.dup2(original, 1)
        os.close(original)


def _constraint(flat: Sequence[tuple[str, Option]], limit: Limit, num_layers: int = 0) -> LinearConstraint:
    """Return a limit in units of itself, so that the solver's absolute tolerance is relative to the limit."""
    unit = max(1, limit.nbytes)
    sizes = [option.nbytes / unit if limit.covers(name) else 0.0 for name, option in flat]
    sizes += [0.0] * num_layers
    return LinearConstraint(csr_array([sizes]), -np.inf, limit.nbytes / unit)


def _pareto_optimal(several: Sequence[Option]) -> list[Option]:
    """Return the options for which no other is smaller and has less loss, from the smallest."""
    kept: list[Option] = []
    for option in sorted(several, key=lambda one: (one.nbytes, one.loss, one.scheme)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def min_nbytes(options: Mapping[str, Sequence[Option]], limit: Limit) -> int:
    """Return the total size of the smallest options of the weights that a limit covers."""
    return sum(min(option.nbytes for option in several) for name, several in options.items() if limit.covers(name))
