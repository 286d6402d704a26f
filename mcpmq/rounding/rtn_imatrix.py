"""Round to nearest on the grid that serves the calibration inputs best: their mean squares weigh the errors.

What llama.cpp's importance matrix does for ggml's grids, done for integer grids too.
"""

from functools import partial

from torch import Tensor

from mcpmq.errors import CalibrationError
from mcpmq.execution.chunked_matmul import workers
from mcpmq.qtensor import QTensor
from mcpmq.rounding.rtn import chunks_of, nearest
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import GgmlScheme, IntegerScheme


def quantize(weight: Tensor, scheme: IntegerScheme | GgmlScheme, stats: LayerStats | None) -> QTensor:
    """A weight [rows, columns] on the grid that makes its error, weighted by the mean square of each input, least.

    A group whose inputs were all zero gets the grid that covers it. The bytes do not depend on the threads.

    Raises:
        CalibrationError: there are no statistics, or they belong to another weight.
        RecipeError: a value is too large for the grid's fp16 scales.
    """
    rows, columns = weight.shape
    if stats is None or len(stats.gram) != columns:
        seen = "nothing" if stats is None else f"inputs of {len(stats.gram):,} columns"
        raise CalibrationError(
            f"`importance` saw {seen} for a weight of {columns:,} columns", "calibrate this checkpoint"
        )
    fit = partial(nearest, scheme=scheme, importance=stats.gram.diagonal().cpu().clone())
    with workers() as pool:
        return QTensor.stacked(pool.map(fit, chunks_of(weight)), rows)
