"""Round to nearest: the grid that covers the weight, and the closest point on it."""

from functools import partial

import torch
from torch import Tensor

from mcpmq.grids import ggml, integer
from mcpmq.observe import LayerStats
from mcpmq.pieces import workers
from mcpmq.qtensor import QTensor
from mcpmq.recipe import GgmlScheme, IntegerScheme

CHUNK_WEIGHTS = 1 << 19  # rounded at a time: their floats stay in the cache, which is 2 to 5 times faster


def quantize(weight: Tensor, scheme: IntegerScheme | GgmlScheme, stats: LayerStats | None = None) -> QTensor:
    """A weight [rows, columns] on the grid of its scheme, whatever the activations were."""
    chunks = torch.split(weight, max(1, CHUNK_WEIGHTS // weight.shape[1]))
    with workers() as pool:
        return QTensor.stacked(pool.map(partial(_rounded, scheme=scheme), chunks), len(weight))


def _rounded(rows: Tensor, scheme: IntegerScheme | GgmlScheme) -> QTensor:
    if isinstance(scheme, GgmlScheme):
        return ggml.round_to(rows, scheme)
    return integer.round_to(rows, integer.fit(rows, scheme), scheme)
