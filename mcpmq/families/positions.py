"""Where tokens stand: text one after the other, the tokens of an image on its rows and columns (M-RoPE)."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Spans = Iterable[tuple[int, int]]
Grids = Iterable[tuple[int, int]]


def sectioned_positions(length: int, spans: Spans, grids: Grids) -> NDArray[np.int64]:
    """Time, row and column of every token: int64 [3, length].

    `spans` are the first and the past-the-last token of every image, `grids` its rows and columns of tokens. Text goes
    on after an image where its longer side ends. Source: section 2.1 of arXiv 2409.12191.
    """
    positions = np.empty((3, length), np.int64)
    done = after = 0
    for (start, end), (rows, columns) in zip(spans, grids, strict=True):
        positions[:, done:start] = after + np.arange(start - done)
        after += start - done
        row, column = np.divmod(np.arange(rows * columns), columns)
        positions[:, start:end] = after + np.stack([np.zeros_like(row), row, column])
        done, after = end, after + max(rows, columns)
    positions[:, done:] = after + np.arange(length - done)
    return positions
