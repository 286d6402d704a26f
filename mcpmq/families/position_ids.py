"""Position ids with the axes time, row and column (M-RoPE)."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Spans = Iterable[tuple[int, int]]
Grids = Iterable[tuple[int, int]]


def mrope_position_ids(length: int, spans: Spans, grids: Grids, times: Sequence[int] = ()) -> NDArray[np.int64]:
    """Compute time, row and column of each token: int64 [3, length].

    `spans` has the first and the past-the-last token of each slice, `grids` its rows and columns of tokens, `times` its
    time in its video; without `times` all are 0. A slice that directly follows another one is of the same video. The
    text after an image or a video starts at its position plus its longer side. Source: section 2.1 of arXiv 2409.12191,
    and transformers for the text after a video.
    """
    positions = np.empty((3, length), np.int64)
    done = origin = after = 0
    placed = list(zip(spans, grids, strict=True))
    for ((start, end), (rows, columns)), time in zip(placed, times or [0] * len(placed), strict=True):
        if start > done or not done:
            positions[:, done:start] = after + np.arange(start - done)
            origin = after + start - done
        row, column = np.divmod(np.arange(rows * columns), columns)
        positions[:, start:end] = origin + np.stack([np.full_like(row, time), row, column])
        done, after = end, origin + max(rows, columns)
    positions[:, done:] = after + np.arange(length - done)
    return positions


def canvas_position_ids(
    tokens: NDArray[np.int64],
    spans: Sequence[tuple[int, int]],
    grids: Sequence[tuple[int, int]],
    tag_ids: Collection[int],
    slices_per_image: Sequence[int] = (),
) -> NDArray[np.int64]:
    """Compute time, row and column of each token: int64 [3, length], with all slices of an image on one canvas.

    The slices are placed on the canvas in rows and columns, and the overview is stretched over it, so both have the
    same positions for the same part of the image. `spans` has the first and the past-the-last token of each image's
    overview and of its slices row by row, `grids` their rows and columns of tokens; `tag_ids` are the tokens around and
    between slices. `slices_per_image` is empty for one image. The text after an image starts after its canvas. Source:
    MiniCPM-V 4.7.
    """
    positions = np.empty((3, len(tokens)), np.int64)
    done = after = first = 0
    for count in slices_per_image or (len(spans),) * bool(spans):
        of_image = slice(first, first + count)
        start, end = spans[first][0] - 1, _image_end(tokens, spans[of_image][-1][1], tag_ids)
        if start > done:  # else only tags are between two images, which have the position of the first one
            positions[:, done:start] = after + np.arange(start - done)
            after += start - done
        positions[:, start:end] = after
        side = _place_image(positions, after, spans[of_image], grids[of_image])
        done, after, first = end, after + side + 1, first + count
    positions[:, done:] = after + np.arange(len(tokens) - done)
    return positions


def _place_image(
    positions: NDArray[np.int64], origin: int, spans: Sequence[tuple[int, int]], grids: Sequence[tuple[int, int]]
) -> int:
    """Add row and column to the tokens of an image, in place; return the longer side of its canvas."""
    ((begin, closing), *slices), (overview, *sizes) = spans, grids
    columns = _first_row_length(slices)
    canvas = (len(slices) // columns * sizes[0][0], columns * sizes[0][1]) if slices else overview
    positions[1:, begin - 1] = max(origin - 1, 0)
    positions[1:, begin:closing] += _stretch_grid(overview, canvas)
    positions[1:, closing] += np.array(canvas, np.int64)
    _add_slice_offsets(positions, slices, sizes, columns, canvas[1])
    return max(canvas)


def _first_row_length(slices: Sequence[tuple[int, int]]) -> int:
    """Return the number of slices in the first row; a newline token follows each row."""
    breaks = (index for index in range(1, len(slices)) if slices[index][0] - slices[index - 1][1] > 2)
    return next(breaks, len(slices))


def _image_end(tokens: NDArray[np.int64], end: int, tag_ids: Collection[int]) -> int:
    """Return the index of the first token after the closing tags."""
    while end < len(tokens) and tokens[end] in tag_ids:
        end += 1
    return end


def _add_slice_offsets(
    positions: NDArray[np.int64],
    slices: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    columns: int,
    canvas_width: int,
) -> None:
    """Add row and column on the canvas to the tokens of the slices, their tags and the newlines, in place."""
    for index, ((start, stop), size) in enumerate(zip(slices, sizes, strict=True)):
        row, column = divmod(index, columns)
        corner = np.array([row * sizes[0][0], column * sizes[0][1]], np.int64)
        positions[1:, start - 1] += corner
        positions[1:, start:stop] += _stretch_grid(size, size) + corner[:, None]
        positions[1:, stop] += corner + size - 1
        if column + 1 == columns and index + 1 < len(slices):
            newline = np.array([[(row + 1) * sizes[0][0] - 1], [canvas_width]])
            positions[1:, stop + 1 : slices[index + 1][0] - 1] += newline


def _stretch_grid(size: tuple[int, int], canvas: tuple[int, int]) -> NDArray[np.int64]:
    """Return row and column on the canvas for each cell of a grid stretched over it: int64 [2, cells]."""
    axes = [_spaced_indices(count, length) for count, length in zip(size, canvas, strict=True)]
    return np.stack([indices.ravel() for indices in np.meshgrid(*axes, indexing="ij")])


def _spaced_indices(count: int, length: int) -> NDArray[np.int64]:
    """Return `count` evenly spaced integers from 0 to `length` - 1, rounded as float32 torch.linspace rounds."""
    step = np.float32((length - 1) / max(count - 1, 1))
    index = np.arange(count, dtype=np.float32)
    spaced = np.where(2 * index < count, step * index, np.float32(length - 1) - step * (count - 1 - index))
    return np.rint(spaced if count > 1 else index).astype(np.int64)
