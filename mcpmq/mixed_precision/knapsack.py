"""The best choice of one option for every weight under limits on their sums: a multiple-choice knapsack.

Method: mixed-integer linear programming by branch and bound (HiGHS, highs.dev, through scipy). No limit of time and no
randomness: the same options give the same choice.
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

SCALE = 1e6  # of the largest loss there can be: the solver takes differences under 1e-6 for none
GAP = 1e-6  # of the optimum, relative: how much better than the choice any other could be


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a weight."""

    scheme: str
    nbytes: int
    loss: float  # not negative, and additive over weights


@dataclass(frozen=True, slots=True)
class Limit:
    """Weights whose name begins with one of these components may take so many bytes together."""

    components: tuple[str, ...]
    nbytes: int

    def holds(self, name: str) -> bool:
        return name.partition(".")[0] in self.components


def choose(options: Mapping[str, Sequence[Option]], limits: Sequence[Limit]) -> dict[str, Option] | None:
    """The option of every weight that makes the sum of losses least; None if nothing fits."""
    kept = {name: _worthwhile(several) for name, several in options.items()}
    flat = [(name, option) for name, several in kept.items() for option in several]
    losses = np.array([option.loss for _, option in flat])
    most = sum(max(option.loss for option in several) for several in kept.values())
    numbers = {name: number for number, name in enumerate(kept)}
    owners = [numbers[name] for name, _ in flat]
    one_each = csr_array((np.ones(len(flat)), (owners, range(len(flat)))))
    with _stdout_kept():
        solved = milp(
            losses / most * SCALE if most else losses,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), *(_constraint(flat, limit) for limit in limits)],
            options={"mip_rel_gap": GAP},
        )
    if solved.x is None:
        return None
    return {name: option for (name, option), taken in zip(flat, solved.x, strict=True) if taken > 0.5}


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """The solver's own code prints to the standard output, which is for results: inside, that is thrown away."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _constraint(flat: Sequence[tuple[str, Option]], limit: Limit) -> LinearConstraint:
    """In shares of the limit, so that the solver's tolerance is one of bytes in a million."""
    unit = max(1, limit.nbytes)
    counted = [option.nbytes / unit if limit.holds(name) else 0.0 for name, option in flat]
    return LinearConstraint(csr_array([counted]), -np.inf, limit.nbytes / unit)


def _worthwhile(several: Sequence[Option]) -> list[Option]:
    """Those that no other beats both in bytes and in loss, from the smallest."""
    kept: list[Option] = []
    for option in sorted(several, key=lambda one: (one.nbytes, one.loss, one.scheme)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def least(options: Mapping[str, Sequence[Option]], limit: Limit) -> int:
    """Bytes of the smallest choice that a limit is about."""
    return sum(min(option.nbytes for option in several) for name, several in options.items() if limit.holds(name))
