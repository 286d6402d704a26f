"""Places where llama.cpp looks otherwise than MiniCPM-V 2.0 and 2.5: for patches elsewhere, for queries not at all."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import FormatError
from mcpmq.families.timm_siglip import FAR, NEAR

if TYPE_CHECKING:  # a forecast declares what is computed here without torch
    from torch import Tensor

Floats = NDArray[np.float64]

EPSILON = 1e-6  # of the norm before queries
LOUD = 1024.0  # queries so large that no epsilon is seen beside them
UNHINDERED = 1e6  # what lies along such a column costs a solution nothing
LARGEST_ERROR = 1e-4  # of what a query is told, beside the largest number in it: a fifth of what F16 makes


def table_for(table: "Tensor", cells: int, side: int) -> "Tensor":
    """A table of positions [1, grid * grid, width] for an engine that gives patch i of n the row floor(cells * i / n)
    of a table of `cells` a side: float64 [cells * cells, width].

    Where a slice has `side` patches a side, every patch gets what resizing the table to it gives. All other cells hold
    the same function at the place where the centre of a patch lies that is about as large and falls into them.
    """
    held = table[0].double().numpy()
    grid = round(len(held) ** 0.5)
    shares = _shares(_centres(cells, side), grid, side)
    resized = np.einsum("ia,jb,abc->ijc", shares, shares, held.reshape(grid, grid, -1), optimize=True)
    return table.double().new_tensor(resized.reshape(cells * cells, -1))


def rows_along_one(cells: int, side: int) -> tuple[int, ...]:
    """Which of `cells` positions along one long row of patches belongs to every cell of a table of `cells` a side, in
    which an engine gives patch i of n the row, and the column, floor(cells * i / n): [cells * cells].

    Where a slice has `side` patches a side, every patch gets the position that counting them gives. All other cells
    have the position of a patch that lies in the middle of them.
    """
    cell = np.arange(cells)
    found = np.minimum(cell[:, None] + 0.5 + (cell + 0.5) / side, cells - 1).astype(int)
    patches = np.arange(side)
    at, number = cells * patches // side, side * patches[:, None] + patches
    found[np.ix_(at, at)] = cells * number // side**2
    return tuple(found.flatten().tolist())


def _centres(cells: int, side: int) -> Floats:
    """Where the centre of a patch lies that gets a cell, in sides of the slice: [cells]."""
    centres = np.minimum((np.arange(cells) + 0.5) / cells + 0.5 / side, 1 - 0.5 / side)
    patches = np.arange(side)
    centres[cells * patches // side] = (patches + 0.5) / side
    return centres


def _shares(centres: Floats, grid: int, side: int) -> Floats:
    """What every cell of a table has in places, bicubic and antialiased as for `side` patches: [places, grid]."""
    apart = np.abs(centres[:, None] * grid - (np.arange(grid) + 0.5)) / max(grid / side, 1)
    heights = np.where(apart < 1, np.polyval(NEAR, apart), np.where(apart < 2, np.polyval(FAR, apart), 0))
    shares: Floats = heights / heights.sum(axis=1, keepdims=True)
    return shares


def placed_query(query: "Tensor", *others: "Tensor") -> "Tensor":
    """Queries for an engine that does not place them; `others` as `placed_queries` takes them."""
    return query.double().new_tensor(placed_queries(query, *others)[0])


def placed_norm(weight: "Tensor", query: "Tensor", bias: "Tensor", places: "Tensor") -> "Tensor":
    """The weight of the norm that belongs to them."""
    return weight.double().new_tensor(placed_queries(query, weight, bias, places)[1])


def placed_bias(bias: "Tensor", query: "Tensor", weight: "Tensor", places: "Tensor") -> "Tensor":
    """And its bias."""
    return bias.double().new_tensor(placed_queries(query, weight, bias, places)[2])


def placed_queries(
    query: "Tensor", weight: "Tensor", bias: "Tensor", places: "Tensor"
) -> tuple[Floats, Floats, Floats]:
    """Queries [queries, width], and weight and bias [width] of their norm, that give norm(query) + place without it.

    A norm puts out rows of one mean and one length, scaled and moved by channel. There are more channels than queries,
    so the wanted rows can be brought to that by scales u and offsets c of channels: first u, near 1, that gives all
    rows u z one sum, then c with this sum that gives all rows u z - c one length. Both are linear: |uz - c|^2 is
    |uz|^2 - 2 uz c and the same for all.

    Raises:
        FormatError: there are too many queries for that, or two are nearly the same.
    """
    wanted = _norm(_floats(query)) * _floats(weight) + _floats(bias) + _floats(places)
    rows, width = wanted.shape
    free = np.full((rows, 1), UNHINDERED)
    scale = 1 + _least(np.hstack([wanted, -free]), -wanted.sum(axis=1) + wanted.sum() / rows)[:width]
    scaled = wanted * scale
    total, squares = scaled.sum() / rows, (scaled**2).sum(axis=1)
    sums, middle = np.append(np.ones(width), 0.0), squares.mean() / 2
    offset = _least(np.vstack([np.hstack([scaled, free]), sums]), np.append(squares / 2 - middle, total))[:width]
    length = np.sqrt(((scaled - offset) ** 2).mean())
    found = (scaled - offset) / length * LOUD, length / scale, offset / scale
    _refuse_error(wanted, *(one.astype(np.float32).astype(np.float64) for one in found))
    return found


def _refuse_error(wanted: Floats, query: Floats, weight: Floats, bias: Floats) -> None:
    error = np.abs(_norm(query) * weight + bias - wanted).max() / np.abs(wanted).max()
    if not error < LARGEST_ERROR:
        raise FormatError(
            f"the {len(wanted)} queries of the resampler cannot hold their positions in {wanted.shape[1]} channels:"
            f" what they are told would be off by {error:.1e} of itself",
            "take another format: `onnx` places queries as the original does",
        )


def _norm(rows: Floats) -> Floats:
    centred = rows - rows.mean(axis=1, keepdims=True)
    normed: Floats = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPSILON)
    return normed


def _least(matrix: Floats, wanted: Floats) -> Floats:
    """The shortest solution of too few equations."""
    return np.asarray(np.linalg.lstsq(matrix, wanted, rcond=None)[0], np.float64)


def _floats(tensor: "Tensor") -> Floats:
    values: Floats = tensor.double().numpy()
    return values
