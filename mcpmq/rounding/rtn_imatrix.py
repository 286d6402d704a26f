"""Round to nearest on grids with the least error weighted by the mean squares of the calibration inputs.

The search that llama.cpp does with an importance matrix (imatrix) for ggml's grids, for integer grids too.
"""

from functools import partial

from torch import Tensor

from mcpmq.execution.chunked_matmul import thread_pool
from mcpmq.grids import quantize as quantize_rows
from mcpmq.qtensor import QTensor, concat_rows
from mcpmq.rounding.rtn import split_rows
from mcpmq.rounding.stats import InputStats, require_stats
from mcpmq.scheme import GridScheme


def quantize(weight: Tensor, scheme: GridScheme, stats: InputStats | None) -> QTensor:
    """Quantize a weight [rows, columns] on grids chosen by the mean square of each input column.

    A group whose inputs were all zero gets the grid that covers its range. The bytes do not depend on the threads.

    Raises:
        DatasetError: the statistics are missing, or of a layer with other columns.
        ScaleError: a scale is too large for fp16.
    """
    rows, columns = weight.shape
    importance = require_stats(stats, columns, "rtn-imatrix").gram.diagonal().to(weight.device).clone()
    with thread_pool(weight.device) as pool:
        chunks = pool.map(partial(quantize_rows, scheme=scheme, importance=importance), split_rows(weight))
        return concat_rows(chunks, rows)
