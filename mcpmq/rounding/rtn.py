"""Round to nearest: the grid that covers the weight, and the closest point on it."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import workers
from mcpmq.grids import ggml, integer
from mcpmq.qtensor import QTensor
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import GgmlScheme, IntegerScheme

CHUNK_WEIGHTS = 1 << 19  # rounded at a time: their floats stay in the cache, which is 2 to 5 times faster


def quantize(weight: Tensor, scheme: IntegerScheme | GgmlScheme, stats: LayerStats | None = None) -> QTensor:
    """A weight [rows, columns] on the grid of its scheme, whatever the activations were."""
    with workers() as pool:
        return QTensor.stacked(pool.map(partial(nearest, scheme=scheme), chunks_of(weight)), len(weight))


def chunks_of(weight: Tensor) -> Sequence[Tensor]:
    """Rows that are rounded at a time; they share nothing."""
    return torch.split(weight, max(1, CHUNK_WEIGHTS // weight.shape[1]))


def nearest(rows: Tensor, scheme: IntegerScheme | GgmlScheme, importance: Tensor | None = None) -> QTensor:
    """Some rows of a weight on the grid that covers them, or that suits the importance of their columns best."""
    if isinstance(scheme, GgmlScheme):
        return ggml.round_to(rows, scheme, importance)
    return integer.round_to(rows, integer.fit(rows, scheme, importance), scheme)
