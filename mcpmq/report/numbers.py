"""Cells of one row: all numbers of a row have the same decimals, and values keep their intervals."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from mcpmq.evaluate import Estimate

UNKNOWN = "n/a"  # of too few samples


@dataclass(frozen=True, slots=True)
class Decimals:
    """Decimals of a row: `digits` significant digits of its smallest half interval, within limits."""

    digits: int
    default: int  # without intervals
    minimum: int = 0
    maximum: int = 6

    def of(self, half_widths: Iterable[float]) -> int:
        """Return the decimals of a row with these half intervals."""
        known = [one for one in half_widths if one > 0 and math.isfinite(one)]
        if not known:
            return self.default
        return min(self.maximum, max(self.minimum, self.digits - 1 - math.floor(math.log10(min(known)))))


def _cells(
    estimates: Sequence[Estimate | None], decimals: Decimals, factor: float = 1, offset: float = 0, sign: str = ""
) -> list[str]:
    found = [None if one is None else ((one.value + offset) * factor, one.half_width * factor) for one in estimates]
    places = decimals.of(pair[1] for pair in found if pair)
    return ["" if pair is None else format_interval(*pair, places, sign) for pair in found]


def format_interval(value: float, half_width: float, places: int, sign: str = "") -> str:
    """Return `value ±half_width`; `n/a` for an unknown value, `±n/a` for an unknown interval."""
    if not math.isfinite(value):
        return UNKNOWN
    known = f"{half_width:,.{places}f}" if math.isfinite(half_width) else UNKNOWN
    return f"{value:{sign},.{places}f} ±{known}"


Cells = Callable[[Sequence[Estimate | None]], list[str]]
perplexity_cells: Cells = partial(_cells, decimals=Decimals(2, default=3, maximum=3))
ratio_cells: Cells = partial(  # as a change in percent
    _cells, decimals=Decimals(2, default=2, minimum=1, maximum=2), factor=100, offset=-1, sign="+"
)
nats_cells: Cells = partial(_cells, decimals=Decimals(2, default=4, minimum=4))
nats_change_cells: Cells = partial(_cells, decimals=Decimals(2, default=4, minimum=4), sign="+")
share_cells: Cells = partial(_cells, decimals=Decimals(1, default=1, minimum=1, maximum=2), factor=100)
share_change_cells: Cells = partial(_cells, decimals=Decimals(1, default=1, minimum=1, maximum=2), factor=100, sign="+")

score_cells: Cells = partial(_cells, decimals=Decimals(2, default=3, maximum=4))
score_change_cells: Cells = partial(_cells, decimals=Decimals(2, default=3, maximum=4), sign="+")


def megabyte_cells(sizes: Sequence[int | None]) -> list[str]:
    """Return sizes in MB (10^6 bytes): three significant digits of the smallest, at most five of the largest."""
    known = [nbytes / 1e6 for nbytes in sizes if nbytes]
    places = min(_places(min(known), 3), max(0, _places(max(known), 5))) if known else 2
    return ["" if nbytes is None else f"{nbytes / 1e6:,.{places}f}" for nbytes in sizes]


def _places(value: float, digits: int) -> int:
    """Return the decimals, at most 2, with which a number has this many significant digits."""
    return min(2, max(0, digits - 1 - math.floor(math.log10(value))))
