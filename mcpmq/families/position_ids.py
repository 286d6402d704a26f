"""Where tokens stand: text one after the other, the tokens of an image on its rows and columns (M-RoPE), or those of
all slices on one canvas."""

from collections.abc import Collection, Iterable, Sequence

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


def canvas_positions(
    tokens: NDArray[np.int64], spans: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int]], tags: Collection[int]
) -> NDArray[np.int64]:
    """Time, row and column of every token: int64 [3, length], where slices lie beside one another on a canvas and the
    overview is stretched over it, so that both see a thing in the same place.

    `spans` are those of the overview and of its slices row by row, `grids` their rows and columns of tokens; `tags` are
    the tokens that may stand around and between slices. Text goes on behind the canvas. Source: MiniCPM-V 4.7.
    """
    if not spans:
        return np.arange(len(tokens)).repeat(3).reshape(-1, 3).T
    (begin, closing), *slices = spans
    origin, end = begin - 1, spans[-1][1]
    while end < len(tokens) and tokens[end] in tags:
        end += 1
    across = next((number for number in range(1, len(slices)) if slices[number][0] - slices[number - 1][1] > 2), None)
    columns = across or len(slices)
    (height, width), *sizes = grids
    canvas = (len(slices) // columns * sizes[0][0], columns * sizes[0][1]) if slices else (height, width)
    positions = np.full((3, len(tokens)), origin, np.int64)
    positions[:, :origin] = np.arange(origin)
    positions[1:, origin] = max(origin - 1, 0)
    positions[1:, begin:closing] += _stretched((height, width), canvas)
    positions[1:, closing] += np.array(canvas, np.int64)
    for number, ((start, stop), size) in enumerate(zip(slices, sizes, strict=True)):
        corner = np.array([number // columns * sizes[0][0], number % columns * sizes[0][1]], np.int64)
        positions[1:, start - 1] += corner
        positions[1:, start:stop] += _stretched(size, size) + corner[:, None]
        positions[1:, stop] += corner + size - 1
        if number + 1 < len(slices) and (number + 1) % columns == 0:
            row_end = (number // columns + 1) * sizes[0][0] - 1
            positions[1:, stop + 1 : slices[number + 1][0] - 1] += np.array([[row_end], [canvas[1]]])
    positions[:, end:] = origin + max(canvas) + 1 + np.arange(len(tokens) - end)
    return positions


def _stretched(size: tuple[int, int], canvas: tuple[int, int]) -> NDArray[np.int64]:
    """Row and column on a canvas of every cell of a grid that is stretched over it: int64 [2, cells]."""
    axes = [_spread(count, length) for count, length in zip(size, canvas, strict=True)]
    return np.stack([place.ravel() for place in np.meshgrid(*axes, indexing="ij")])


def _spread(count: int, length: int) -> NDArray[np.int64]:
    """`count` whole numbers from 0 to `length` - 1, counted from the nearer end in float32 as torch does."""
    step = np.float32((length - 1) / max(count - 1, 1))
    number = np.arange(count, dtype=np.float32)
    places = np.where(2 * number < count, step * number, np.float32(length - 1) - step * (count - 1 - number))
    return np.rint(places if count > 1 else number).astype(np.int64)
