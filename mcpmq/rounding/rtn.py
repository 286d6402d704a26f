"""Round to nearest (RTN): the grid covers the range of every group, and each value goes to the nearest code."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import thread_pool
from mcpmq.execution.device import CPU
from mcpmq.grids import quantize as quantize_rows
from mcpmq.qtensor import QTensor, concat_rows
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import GridScheme

CHUNK_WEIGHTS = 1 << 19  # at a time: the floats stay in the cache, which is 2 to 5 times faster
DEVICE_CHUNK_WEIGHTS = 1 << 26  # on devices other than the CPU: few large operations
CHUNK_ROWS = 64  # that the kernels of ggml's block types quantize together


def quantize(weight: Tensor, scheme: GridScheme, stats: InputStats | None = None) -> QTensor:
    """Quantize a weight [rows, columns]; `stats` are not used.

    Raises:
        ScaleError: a scale is too large for fp16.
    """
    with thread_pool(weight.device) as pool:
        return concat_rows(pool.map(partial(quantize_rows, scheme=scheme), split_rows(weight)), len(weight))


def split_rows(weight: Tensor) -> Sequence[Tensor]:
    """Split a weight into chunks of rows that are quantized at a time; rows are independent."""
    if weight.device != CPU:
        return torch.split(weight, max(1, DEVICE_CHUNK_WEIGHTS // weight.shape[1]))
    rows = CHUNK_WEIGHTS // weight.shape[1]
    if rows < CHUNK_ROWS:
        return torch.split(weight, max(1, min(CHUNK_ROWS, 2 * CHUNK_WEIGHTS // weight.shape[1])))
    return torch.split(weight, rows // CHUNK_ROWS * CHUNK_ROWS)
