"""The Pareto front of a search: the best recipes of several limits, with and without structured compression."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mcpmq.system.table import Row, Table, format_megabytes

FACTORS = (0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5)  # of the limit


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """The best recipe of a limit; `structure` names its structured compression, if the search could choose it."""

    nbytes: int  # of the limited resource
    rank_score: float
    structure: str | None = None


def pareto_front(points: Iterable[FrontPoint]) -> tuple[FrontPoint, ...]:
    """Return the points for which no other is smaller and has a smaller score, from the smallest."""
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda one: (one.nbytes, one.rank_score)):
        if not kept or point.rank_score < kept[-1].rank_score:
            kept.append(point)
    return tuple(kept)


def front_table(points: Sequence[FrontPoint], resource: str) -> Table:
    """Return a row for every point: scores of schemes alone, and of schemes with structured compression."""
    ordered = sorted(points, key=lambda one: (one.nbytes, one.structure is not None))
    columns = ["schemes", *(["with structure", "structured compression"] if _is_structured(points) else [])]
    rows: list[Row] = [(format_megabytes(one.nbytes), _cells(one)[: len(columns)]) for one in ordered if one.nbytes > 0]
    return Table(f"rank score by {resource}", columns, rows)


def _is_structured(points: Sequence[FrontPoint]) -> bool:
    return any(one.structure is not None for one in points)


def _cells(point: FrontPoint) -> list[str]:
    score = f"{point.rank_score:.2g}"
    return [score, "", ""] if point.structure is None else ["", score, point.structure]


def front_comments(points: Sequence[FrontPoint], resource: str) -> list[str]:
    """Return a line for every point."""
    lines = [
        f"  {format_megabytes(one.nbytes)}: {one.rank_score:.2g}{f', {one.structure}' if one.structure else ''}"
        for one in sorted(points, key=lambda one: (one.nbytes, one.structure is not None))
    ]
    return [f"Rank score of the best recipes by {resource}:", *lines] if lines else []


def front_dicts(points: Sequence[FrontPoint]) -> list[dict[str, Any]]:
    """Return the JSON objects of points."""
    return [asdict(one) for one in points]
