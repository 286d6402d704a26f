"""Scales that move from one layer into its neighbour, so that rounding hurts what matters less; no output changes.

A column that is multiplied by a scale before it is rounded, and whose input is divided by it, errs that much less. AWQ
(arXiv 2306.00978) takes the scales from mean magnitudes of inputs, SmoothQuant (arXiv 2211.10438) from the largest
magnitudes of inputs and weights; both raise them to an exponent, which is searched here on what calibration saw.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import Each
from mcpmq.families.family import Fold
from mcpmq.grids import dequantize
from mcpmq.rounding.rtn import nearest
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import GgmlScheme, IntegerScheme

Method = Literal["awq", "smoothquant"]
# Beside these no scales at all are tried, which is AWQ's exponent of 0.
EXPONENTS: dict[Method, tuple[float, ...]] = {
    "awq": tuple(step / 20 for step in range(1, 20)),
    "smoothquant": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
}
LEAST = 1e-4  # of the largest magnitude: what is smaller counts as much
SEARCHED_ROWS, SEARCHED_WEIGHTS = 512, 1 << 20  # of every matrix, evenly spread


@dataclass(frozen=True, slots=True)
class Scaling:
    """What one weight is scaled by: each row is divided and each column multiplied by its scale, float32. A row that
    counts as so much more than it is, as of a centred norm, is divided as what it counts."""

    rows: Tensor | None = None
    columns: Tensor | None = None
    centre: float = 0.0

    def applied(self, weight: Tensor, first_row: int = 0) -> Tensor:
        """Rows of a weight [rows, ...], from some row on, in float32 and scaled; without any scales as they are."""
        if self.columns is not None:
            weight = weight.float() * self.columns
        if self.rows is not None:
            rows = self.rows[first_row : first_row + len(weight)]
            weight = (weight.float() + self.centre) / rows.reshape(-1, *(1 for _ in weight.shape[1:])) - self.centre
        return weight


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales that move between two neighbours: float32 [channels], and repeated for the columns that read them."""

    fold: Fold
    exponent: float
    channels: Tensor
    columns: Tensor


@dataclass(frozen=True, slots=True)
class Reader:
    """A matrix that takes scales: float32 [rows, columns], its grid, and what it sees."""

    weight: Tensor
    scheme: IntegerScheme | GgmlScheme
    stats: LayerStats

    def sample(self) -> "Reader":
        """Some rows for the search, evenly spread, as many as are quickly tried."""
        rows, columns = self.weight.shape
        count = min(rows, SEARCHED_ROWS, max(1, SEARCHED_WEIGHTS // columns))
        taken = torch.arange(count, device=self.weight.device) * rows // count
        return replace(self, weight=self.weight[taken].contiguous())


@dataclass(frozen=True, slots=True)
class Channels:
    """How many there are between two neighbours, and how columns share them: heads in groups, head after head."""

    count: int
    head_width: int

    def shared(self, columns: Tensor, largest: bool = False) -> Tensor:
        """One value a channel, of values [columns]: the mean, or the largest, of those that share it."""
        heads = self._heads(columns)
        return (heads.amax(1) if largest else heads.mean(1)).flatten()

    def spread(self, values: Tensor, columns: int) -> Tensor:
        """Values [channels] for every column that reads the channel."""
        return values.reshape(-1, 1, self._width(columns)).expand(-1, columns // self.count, -1).flatten()

    def _heads(self, columns: Tensor) -> Tensor:
        return columns.reshape(-1, len(columns) // self.count, self._width(len(columns)))

    def _width(self, columns: int) -> int:
        return self.count if columns == self.count else self.head_width


def search(
    fold: Fold, method: Method, readers: Sequence[Reader], channels: Channels, weighted: bool, each: Each
) -> Scales | None:
    """The scales that make the square error of the readers' outputs least, or None if that is without any.

    The error of a reader is the trace of E G E^T, with E what rounding to nearest leaves over and G its Gram matrix, on
    a sample of its rows; under `smoothquant` also what 8 bits for a whole tensor of inputs leave over. `weighted` has
    the grids fitted to what matters to the inputs. `each` may share the exponents out to threads.
    """
    options = [None, *EXPONENTS[method]]
    plain = torch.ones(channels.count, device=readers[0].weight.device)
    scales = [plain, *_candidates(method, readers, channels)]
    samples = [(reader.sample(), len(reader.weight)) for reader in readers]
    errors = [0.0] * len(options)

    def measure(option: int) -> None:
        columns = channels.spread(scales[option], readers[0].weight.shape[1])
        errors[option] = sum(
            rows / len(reader.weight) * _error(reader, columns, method, weighted) for reader, rows in samples
        )

    each(measure, range(len(options)))
    best = min(range(len(options)), key=errors.__getitem__)
    if (exponent := options[best]) is None:
        return None
    return Scales(fold, exponent, scales[best], channels.spread(scales[best], readers[0].weight.shape[1]))


def _candidates(method: Method, readers: Sequence[Reader], channels: Channels) -> list[Tensor]:
    """The scales of every exponent."""
    seen = readers[0].stats  # the others see the same
    if method == "awq":
        magnitude = channels.shared(seen.absolute)
        return [awq_scale(magnitude, exponent) for exponent in EXPONENTS[method]]
    largest = channels.shared(seen.largest, largest=True)
    heaviest = torch.stack([reader.weight.abs().amax(0) for reader in readers]).amax(0)
    heaviest = channels.shared(heaviest, largest=True)
    return [smoothquant_scale(largest, heaviest, exponent) for exponent in EXPONENTS[method]]


def awq_scale(magnitude: Tensor, exponent: float) -> Tensor:
    """AWQ's scales, float32 [channels], of mean magnitudes; 1 where a channel was always zero."""
    return _centred(_tamed(magnitude) ** exponent, magnitude > 0)


def smoothquant_scale(largest: Tensor, heaviest: Tensor, exponent: float) -> Tensor:
    """SmoothQuant's scales, float32 [channels], of the largest magnitudes of inputs and of the weights of a column; 1
    where either was always zero."""
    scale = _tamed(largest) ** exponent / _tamed(heaviest) ** (1 - exponent)
    return _centred(scale, (largest > 0) & (heaviest > 0))


def _tamed(magnitude: Tensor) -> Tensor:
    largest = magnitude.max()
    return (magnitude / largest).clamp(min=LEAST) if largest > 0 else torch.ones_like(magnitude)


def _centred(scale: Tensor, alive: Tensor) -> Tensor:
    """As many times above 1 as below it at the ends."""
    if not alive.any():
        return torch.ones_like(scale)
    middle = (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale / middle, torch.ones_like(scale))


def _error(reader: Reader, columns: Tensor, method: Method, weighted: bool) -> float:
    weight, stats = reader.weight * columns, reader.stats
    importance = stats.gram.diagonal() / columns.square() if weighted else None
    rounded = dequantize(nearest(weight, reader.scheme, importance)).to(weight.device)
    left = rounded / columns - reader.weight
    error = float((left @ stats.gram).mul_(left).sum(dtype=torch.float64))
    if method == "smoothquant":
        step = float((stats.largest / columns).max()) / 127
        error += stats.weight * step**2 / 12 * float(weight.square().sum(dtype=torch.float64))
    return error


def scaled_stats(
    stats: Mapping[str, tuple[LayerStats, ...]], found: Sequence[Scales]
) -> dict[str, tuple[LayerStats, ...]]:
    """What the matrices of a block see, by common name, once inputs are divided by the scales.

    Gram matrices are changed in place, those that several matrices share once: two would not fit.
    """
    scaled = dict(stats)
    for scales in found:
        changed: dict[int, LayerStats] = {}
        for name in filter(stats.__contains__, scales.fold.into):
            [seen] = stats[name]
            if id(seen) not in changed:
                changed[id(seen)] = _scaled(seen, scales.columns)
            scaled[name] = (changed[id(seen)],)
    return scaled


def _scaled(stats: LayerStats, columns: Tensor) -> LayerStats:
    stats.gram.div_(columns).div_(columns[:, None])
    absolute, lowest, highest = (size / columns for size in (stats.absolute, stats.lowest, stats.highest))
    return replace(stats, absolute=absolute, lowest=lowest, highest=highest)


def scalings(found: Sequence[Scales]) -> Mapping[str, Scaling]:
    """What every weight of a block is scaled by, by common name; nothing for what no scale touches. Weights are scaled
    as they are read: on the processor."""
    scaling: defaultdict[str, Scaling] = defaultdict(Scaling)
    for scales in found:
        share, shares = scales.fold.part
        rows = torch.ones(shares, len(scales.channels))
        rows[share] = scales.channels
        for name in (scales.fold.source, f"{scales.fold.source}.bias"):
            scaling[name] = replace(scaling[name], rows=rows.flatten(), centre=float(scales.fold.centred))
        for name in scales.fold.into:
            scaling[name] = replace(scaling[name], columns=scales.columns.cpu())
    return scaling
