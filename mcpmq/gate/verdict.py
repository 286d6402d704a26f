"""Verdicts: the result of one bound for one artifact, with its value, its interval and its margin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mcpmq.evaluate import Estimate
from mcpmq.gate.gate import Bound
from mcpmq.system.table import Row, Table

Status = Literal["passed", "failed", "skipped"]
DIGITS = 4  # significant, in tables; JSON has all


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one bound for one artifact.

    `problem` is empty if the bound holds; `skipped` has the reason if it could not be checked because of another
    verdict, e.g. a baseline of another evaluation set.
    """

    artifact: str
    reference: str  # "original" or "baseline"
    group: str  # of samples, or "artifact"
    metric: str
    problem: str = ""
    skipped: str = ""
    bound: Bound | None = None
    value: Estimate | float | None = None
    gate: Path | None = None  # the file of the bound
    line: int = 1  # of the bound in this file

    @property
    def status(self) -> Status:
        """The result: `skipped` bounds neither passed nor failed."""
        return "failed" if self.problem else "skipped" if self.skipped else "passed"

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def checked_value(self) -> float | None:
        """The number that the bound applies to: the value, or an end of its interval."""
        if isinstance(self.value, Estimate):
            return None if self.bound is None else float(getattr(self.value, self.bound.on))
        return self.value

    @property
    def margin(self) -> float | None:
        """The distance to the nearest limit of the bound; negative outside of it, None if it is not known."""
        value = self.checked_value
        if self.bound is None or value is None or not math.isfinite(value):
            return None
        limits = self.bound.at_most, self.bound.at_least
        distances = [sign * (limit - value) for limit, sign in zip(limits, (1, -1), strict=True) if limit is not None]
        return min(distances)

    def __str__(self) -> str:
        result = self.problem or (f"skipped: {self.skipped}" if self.skipped else "passed")
        return f"{self.artifact}, {self.group}, {self.metric} against the {self.reference}: {result}"

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON values; unknown numbers are null."""
        value = self.value if isinstance(self.value, Estimate) else None
        number = value.value if value else self.value
        return {
            "status": self.status,
            "artifact": self.artifact,
            "reference": self.reference,
            "group": self.group,
            "metric": self.metric,
            "value": _finite(number if isinstance(number, float | int) else None),
            "low": _finite(value.low if value else None),
            "high": _finite(value.high if value else None),
            "bound": self.bound.model_dump() if self.bound else None,
            "checked_value": _finite(self.checked_value),
            "margin": self.margin,
            "reason": self.problem or self.skipped,
            "gate": str(self.gate) if self.gate else None,
            "line": self.line if self.gate else None,
        }

    def cells(self) -> list[str]:
        """Return value with interval, limits, margin and result as text."""
        allowed = "" if self.bound is None else str(self.bound)
        if self.bound and self.bound.on != "value":
            allowed += f" ({self.bound.on} end)"
        margin = "" if self.margin is None else format_number(self.margin, "+")
        return [format_value(self.value), allowed, margin, self.status if self.passed else self.status.upper()]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def format_number(value: float, sign: str = "") -> str:
    """Return a number with four significant digits; `n/a` if it is not known."""
    if not math.isfinite(value):
        return "n/a"
    places = DIGITS - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:{sign},.{min(8, max(0, places))}f}"


def format_value(value: Estimate | float | None) -> str:
    """Return a value with the ends of its 95 % interval."""
    if isinstance(value, Estimate):
        return f"{format_number(value.value)} [{format_number(value.low)}, {format_number(value.high)}]"
    return "" if value is None else format_number(value)


def headline(verdicts: Sequence[Verdict]) -> str:
    """Return the result of a gate: `failed: 1 of 4 bounds violated, 1 skipped`."""
    counts = {status: sum(one.status == status for one in verdicts) for status in ("passed", "failed", "skipped")}
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    if counts["failed"]:
        return f"failed: {counts['failed']} of {_bounds(len(verdicts))} violated{skipped}"
    return f"passed: {counts['passed']} of {_bounds(len(verdicts))} hold{'s' * (counts['passed'] == 1)}{skipped}"


def _bounds(count: int) -> str:
    return f"{count} bound{'s' * (count != 1)}"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Return a row for every bound, below artifact and reference; violated bounds are also notes."""
    rows: list[Row] = []
    previous = ("", "")
    for verdict in verdicts:
        if (verdict.artifact, verdict.reference) != previous:
            previous = verdict.artifact, verdict.reference
            rows.append((f"{verdict.artifact}, against the {verdict.reference}", [""] * 4))
        rows.append((f"  {verdict.group} {verdict.metric}", verdict.cells()))
    columns = ["value [95 % interval]", "allowed", "margin", "result"]
    notes = [str(verdict) for verdict in verdicts if not verdict.passed]
    return Table(f"Gate {headline(verdicts)}", columns, rows, notes)
