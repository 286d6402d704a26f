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


def solve(options: Mapping[str, Sequence[Option]], limits: Sequence[Limit]) -> dict[str, Option] | None:
    """Return the option of every weight with the least total loss; None if no choice is within the limits."""
    candidates = {name: _pareto_optimal(several) for name, several in options.items()}
    flat = [(name, option) for name, several in candidates.items() for option in several]
    losses = np.array([option.loss for _, option in flat])
    max_loss = sum(max(option.loss for option in several) for several in candidates.values())
    indices = {name: index for index, name in enumerate(candidates)}
    owners = [indices[name] for name, _ in flat]
    one_each = csr_array((np.ones(len(flat)), (owners, range(len(flat)))))
    with _stdout_discarded():
        solution = milp(
            losses / max_loss * LOSS_SCALE if max_loss else losses,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), *(_constraint(flat, limit) for limit in limits)],
            options={"mip_rel_gap": RELATIVE_GAP},
        )
    if solution.x is None:
        return None
    return {name: option for (name, option), chosen in zip(flat, solution.x, strict=True) if chosen > 0.5}


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


def _constraint(flat: Sequence[tuple[str, Option]], limit: Limit) -> LinearConstraint:
    """Return a limit in units of itself, so that the solver's absolute tolerance is relative to the limit."""
    unit = max(1, limit.nbytes)
    sizes = [option.nbytes / unit if limit.covers(name) else 0.0 for name, option in flat]
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
