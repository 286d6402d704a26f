"""The least error of a block by trying scales, and offsets, in small steps."""

import numpy as np
from numpy.typing import NDArray

from mcpmq.grids.ggml_blocks import IQ4_NL_VALUES

LEVELS = {
    "q4_0": np.arange(-8, 8),
    "q5_0": np.arange(-16, 16),
    "q8_0": np.arange(-127, 128),
    "iq4_nl": np.array(IQ4_NL_VALUES),
    "q4_1": np.arange(16),
}


def best_error(row: NDArray[np.float32], importance: NDArray[np.float32], name: str) -> float:
    """Return the least weighted sum of squares of a block of 32 values."""
    levels = LEVELS[name].astype(np.float64)
    if name == "q4_1":
        return min(_least(row - offset, importance, levels, row.max() - offset) for offset in _offsets(row))
    largest = np.abs(row).max() / np.abs(levels).max()
    return min(_least(sign * row, importance, levels, largest * np.abs(levels).max()) for sign in (1, -1))


def _offsets(row: NDArray[np.float32]) -> NDArray[np.float64]:
    width = row.max() - row.min()
    return np.linspace(row.min() - 0.1 * width, row.min() + 0.5 * width, 90)


def _least(row: NDArray[np.float32], importance: NDArray[np.float32], levels: NDArray[np.float64], top: float) -> float:
    scales = np.linspace(0.4, 1.25, 300) * top / levels.max()
    steps = row[None, :] / scales[:, None]
    middles = (levels[1:] + levels[:-1]) / 2
    values = levels[np.searchsorted(middles, steps)] * scales[:, None]
    return float((((values - row) ** 2) * importance).sum(1).min())
