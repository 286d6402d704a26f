"""Round to nearest: the grid that covers the weight, and the closest point on it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from mcpmq.grids import ggml, integer
from mcpmq.observe import LayerStats
from mcpmq.qtensor import QTensor
from mcpmq.recipe import GgmlScheme, IntegerScheme

CHUNK_WEIGHTS = 1 << 19  # rounded at a time: their floats stay in the cache, which is 2 to 5 times faster


def quantize(weight: Tensor, scheme: IntegerScheme | GgmlScheme, stats: LayerStats | None = None) -> QTensor:
    """A weight [rows, columns] on the grid of its scheme, whatever the activations were."""
    chunks = torch.split(weight, max(1, CHUNK_WEIGHTS // weight.shape[1]))
    with _workers() as pool:
        return QTensor.stacked(pool.map(partial(_rounded, scheme=scheme), chunks), len(weight))


def _rounded(rows: Tensor, scheme: IntegerScheme | GgmlScheme) -> QTensor:
    if isinstance(scheme, GgmlScheme):
        return ggml.round_to(rows, scheme)
    return integer.round_to(rows, integer.fit(rows, scheme), scheme)


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """A worker for every thread of torch, each with one: threads that meet after each small step mostly wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
