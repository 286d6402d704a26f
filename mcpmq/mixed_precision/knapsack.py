"""Choose one option for every weight, with the least loss under size limits: a multiple-choice knapsack.

The method is mixed-integer linear programming by branch and bound (HiGHS, highs.dev, through scipy). It has no time
limit and no randomness: equal options give equal choices.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mcpmq.mixed_precision.choices import NO_CHOICES, Choices, Limit, Option, Options, Solution

LOSS_SCALE = 1e6  # of the largest possible loss; the solver ignores differences below 1e-6
UNITS_PER_LIMIT = 1e4  # the tolerance of the solver, 1e-6 units, is less than a byte of 10 GB
MAX_SOLUTIONS = 40
RELATIVE_GAP = 1e-6  # between the loss of the choice and that of the optimum
Row: TypeAlias = tuple[dict[int, float], float, float]  # coefficients by variable; least and largest value of their sum


def solve(options: Options, limits: Sequence[Limit], choices: Choices = NO_CHOICES) -> Solution | None:
    """Return the choices with the least total loss; None if none are within the limits.

    A removed layer has no bytes; its weights are not in the result. Where the tolerance of the solver lets a size
    exceed its limit by some bytes, that limit is lowered, by twice as many bytes each time.
    """
    lowered = dict.fromkeys(range(len(limits)), 0.0)
    for factor in (2**number for number in range(MAX_SOLUTIONS)):
        own = [replace(one, nbytes=int(one.nbytes - lowered[number])) for number, one in enumerate(limits)]
        found = _solve(options, own, choices)
        excess = {number: found.nbytes(one) - one.nbytes for number, one in enumerate(limits)} if found else {}
        if all(one <= 0 for one in excess.values()):
            return found
        lowered.update({number: factor * one for number, one in excess.items() if one > 0})
    raise AssertionError(f"the sizes exceed their limits by {excess} bytes")


def _solve(options: Options, limits: Sequence[Limit], choices: Choices) -> Solution | None:
    """Return choices that exceed limits by at most the tolerance of the solver."""
    program = _Program.build(options, limits, choices)
    rows = [*program.weight_rows(), *program.choice_rows(), *program.product_rows(), *program.limit_rows()]
    with _stdout_discarded():
        solution = milp(
            program.losses,
            integrality=np.ones(program.num_variables),
            bounds=Bounds(0, 1),
            constraints=_constraint(rows, program.num_variables),
            options={"mip_rel_gap": RELATIVE_GAP},
        )
    return None if solution.x is None else program.solution([value > 0.5 for value in solution.x])


@dataclass(frozen=True)
class _Stored:
    """A variable: a weight on a scheme, under the setting that its size depends on, if any."""

    weight: str
    option: Option
    setting: str | None = None


@dataclass(frozen=True)
class _Program:
    """Variables are stored weights, removed layers, settings, and products of two of the latter two, in this order."""

    stored: list[_Stored]
    limits: Sequence[Limit]
    choices: Choices
    products: list[tuple[str, str]]  # names of layers and settings

    @classmethod
    def build(cls, options: Options, limits: Sequence[Limit], choices: Choices) -> "_Program":
        """Define the variables."""
        dependent = {name for setting in choices.settings for name in setting.options}
        stored = [_Stored(name, one) for name in options if name not in dependent for one in _front(options[name])]
        for setting in choices.settings:
            for name, several in setting.options.items():
                stored += [_Stored(name, one, setting.name) for one in _front(several)]
        products = [(one, two) for limit in limits for one, *rest in limit.charges for two in rest]
        return cls(stored, limits, choices, list(dict.fromkeys(products)))

    @cached_property
    def by_name(self) -> dict[str, int]:
        """The variables of layers and settings."""
        names = [one.layer for one in self.choices.layers] + [one.name for one in self.choices.settings]
        return {name: len(self.stored) + number for number, name in enumerate(names)}

    @cached_property
    def by_product(self) -> dict[tuple[str, str], int]:
        """The variables of products."""
        first = len(self.stored) + len(self.by_name)
        return {names: first + number for number, names in enumerate(self.products)}

    @property
    def num_variables(self) -> int:
        return len(self.stored) + len(self.by_name) + len(self.by_product)

    @property
    def losses(self) -> list[float]:
        """The loss of every variable, in units in which the tolerance of the solver is small."""
        losses = [one.option.loss for one in self.stored]
        losses += [one.loss for one in self.choices.layers] + [one.loss for one in self.choices.settings]
        largest: dict[str, float] = {}
        for one in self.stored:
            largest[one.weight] = max(one.option.loss, largest.get(one.weight, 0.0))
        total = sum(largest.values()) + sum(losses[len(self.stored) :])
        return [loss / total * LOSS_SCALE if total else loss for loss in losses] + [0.0] * len(self.products)

    def weight_rows(self) -> Iterator[Row]:
        """Yield for every weight: it has one option, or its layer is removed; under a setting only if it is chosen."""
        rows: dict[tuple[str, str | None], dict[int, float]] = {}
        for number, one in enumerate(self.stored):
            rows.setdefault((one.weight, one.setting), {})[number] = 1.0
        for layer in self.choices.layers:
            for weight in layer.weights:
                rows[weight, None][self.by_name[layer.layer]] = 1.0
        for (_, setting), row in rows.items():
            yield (row, 1, 1) if setting is None else ({**row, self.by_name[setting]: -1.0}, 0, 0)

    def choice_rows(self) -> Iterator[Row]:
        """Yield the number of removed layers, and one setting of each part."""
        if self.choices.layers:
            yield {self.by_name[one.layer]: 1.0 for one in self.choices.layers}, 0, self.choices.most
        for part in self.choices.parts:
            yield {self.by_name[one.name]: 1.0 for one in part}, 1, 1

    def product_rows(self) -> Iterator[Row]:
        """Yield the constraints that a product is 1 exactly if both of its factors are."""
        for names, product in self.by_product.items():
            factors = [self.by_name[name] for name in names]
            yield from (({product: 1.0, factor: -1.0}, -inf, 0) for factor in factors)
            yield {product: -1.0, **dict.fromkeys(factors, 1.0)}, -inf, 1

    def limit_rows(self) -> Iterator[Row]:
        """Yield limits in units of a part of themselves: the solver's absolute tolerance is relative to the limit."""
        for limit in self.limits:
            unit = max(1.0, limit.nbytes / UNITS_PER_LIMIT)
            row = {
                number: one.option.nbytes / unit for number, one in enumerate(self.stored) if limit.covers(one.weight)
            }
            yield row | self._charges(limit.charges, unit), -inf, limit.nbytes / unit

    def _charges(self, charges: Mapping[tuple[str, ...], float], unit: float) -> dict[int, float]:
        variables: dict[tuple[str, ...], int] = {(name,): number for name, number in self.by_name.items()}
        variables.update(self.by_product.items())
        return {variables[names]: nbytes / unit for names, nbytes in charges.items()}

    def solution(self, chosen: Sequence[bool]) -> Solution:
        """Return the choices of a value for every variable."""
        return Solution(
            {one.weight: one.option for one, is_chosen in zip(self.stored, chosen, strict=False) if is_chosen},
            tuple(one for one in self.choices.layers if chosen[self.by_name[one.layer]]),
            tuple(one for one in self.choices.settings if chosen[self.by_name[one.name]]),
        )


def _constraint(rows: Sequence[Row], num_variables: int) -> LinearConstraint:
    entries = [(number, column, value) for number, (row, *_) in enumerate(rows) for column, value in row.items()]
    numbers, columns, values = zip(*entries, strict=True)
    matrix = csr_array((values, (numbers, columns)), shape=(len(rows), num_variables))
    return LinearConstraint(matrix, [low for _, low, _ in rows], [high for *_, high in rows])


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


def _front(several: Sequence[Option]) -> list[Option]:
    """Return the options for which no other is smaller and has less loss, from the smallest."""
    kept: list[Option] = []
    for option in sorted(several, key=lambda one: (one.nbytes, one.loss, one.scheme)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept
