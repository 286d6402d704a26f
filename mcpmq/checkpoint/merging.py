"""Merge the change of an adapter into rows of a weight, with the arithmetic of PEFT.

PEFT (`LoraLayer.merge`) computes products in float32, adds them to the weight in float32, and rounds the sum once to
the dtype of the weight; for embeddings and the matrices of attention it rounds the product first. Products are computed
in tiles of fixed rows by one thread: the result does not depend on how many rows are read at a time.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.checkpoint.adapter import Change, LowRank
from mcpmq.system.safetensors_file import TensorEntry, consecutive_runs, read_bytes
from mcpmq.system.torch_threads import torch_threads

TILE_ROWS = 256


def merge_rows(change: Change, rows: Tensor, first_row: int = 0, step: int = 1) -> Tensor:
    """Return rows `first_row`, `first_row + step`, ... of a merged weight, in the dtype of `rows`.

    `rows` are those of the checkpoint, [count, ...]; the other axes of a convolution are kept.
    """
    if change.replacement is not None:
        rows = _read_every(change.replacement, len(rows), first_row, step).to(rows.dtype)
    if change.low_rank is not None:
        flat = rows.reshape(len(rows), -1)
        rows = torch.cat(list(_merged_tiles(change.low_rank, flat, first_row, step))).reshape(rows.shape)
    if change.added is not None:
        added = _read_every(change.added, len(rows), first_row, step).float() * change.scaling
        rows = (rows.float() + added).to(rows.dtype)
    return rows


def merge_selected_rows(change: Change, rows: Tensor, numbers: NDArray[np.int64]) -> Tensor:
    """Return rows of a merged weight, given their ascending numbers."""
    merged = [merge_rows(change, rows[run], int(numbers[run.start])) for run in consecutive_runs(numbers)]
    return torch.cat(merged)


def _merged_tiles(low_rank: LowRank, rows: Tensor, first_row: int, step: int) -> Iterator[Tensor]:
    numbers = torch.arange(len(rows)) * step + first_row
    right = _read(low_rank.b).T if low_rank.is_embedding else _read(low_rank.a)  # [rank, columns]
    left = _read(low_rank.a).T if low_rank.is_embedding else None
    for tile in range(first_row // TILE_ROWS, int(numbers[-1]) // TILE_ROWS + 1):
        begin = tile * TILE_ROWS
        first, end = ((begin - first_row + step - 1) // step, (begin + TILE_ROWS - first_row + step - 1) // step)
        held = slice(max(0, first), min(len(rows), end))
        if held.start >= held.stop:
            continue
        factor = _read(low_rank.b, begin, begin + TILE_ROWS) if left is None else left[begin : begin + TILE_ROWS]
        with torch_threads(1):
            product = (factor.contiguous() @ right.contiguous())[numbers[held] - begin] * low_rank.scaling
        yield _merge_tile(low_rank, rows[held], product, numbers[held])


def _merge_tile(low_rank: LowRank, rows: Tensor, product: Tensor, numbers: Tensor) -> Tensor:
    for rounds in low_rank.additions:
        merged = rows.float() + (product.to(rows.dtype).float() if rounds else product)
        if low_rank.magnitude is not None:
            magnitudes = _read(low_rank.magnitude).flatten()[numbers]
            merged = (magnitudes / torch.linalg.norm(merged, dim=1)).reshape(-1, 1) * merged
        rows = merged.to(rows.dtype)
    return rows


def _read_every(entry: TensorEntry, count: int, first_row: int, step: int) -> Tensor:
    """Read `count` rows of a tensor, or values of a vector."""
    last = first_row + (count - 1) * step
    return _read_stored(entry, first_row, last + 1)[::step]


def _read(entry: TensorEntry, begin: int = 0, end: int | None = None) -> Tensor:
    """Read rows of a matrix in float32, flattened to two axes."""
    values = _read_stored(entry, begin, end).float()
    return values.reshape(len(values), -1)


def _read_stored(entry: TensorEntry, begin: int, end: int | None) -> Tensor:
    length = entry.shape[0]
    end = length if end is None else min(end, length)
    row_nbytes = entry.nbytes // length
    values = read_bytes(entry, begin * row_nbytes, end * row_nbytes)
    return torch.frombuffer(values, dtype=getattr(torch, entry.torch_dtype)).reshape(end - begin, *entry.shape[1:])
