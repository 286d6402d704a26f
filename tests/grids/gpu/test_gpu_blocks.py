"""Searches for the scales of ggml's blocks on tensors against the kernels of the CPU, which numba compiles."""

from functools import partial

import numpy as np
import pytest
import torch

from mcpmq.grids import ggml, kernels
from mcpmq.grids.gpu import blocks
from mcpmq.qtensor import GgmlTensor
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme
from tests.triton_device import DEVICE

WEIGHTED_MEAN = 0.7  # of the importance
NORMAL, OUTLIERS, DEGENERATE = slice(12), slice(12, 24), slice(24, 28)


def _rows(columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights, and the importance of columns: 12 normal rows, 12 with outliers, 4 degenerate ones."""
    generator = torch.Generator().manual_seed(3)
    normal = partial(torch.randn, generator=generator)
    values = 0.02 * normal(28, columns)
    values[OUTLIERS] *= 1 + 20 * (torch.rand(12, columns, generator=generator) < 0.01)
    values[24], values[25], values[26] = 0, values[25].abs(), 0.5
    values[27, : columns // 2] = 0
    return values, WEIGHTED_MEAN * normal(columns).square().clamp(min=1e-6)


@pytest.mark.parametrize("name", sorted(blocks.NAMES))
def test_errors_are_those_of_the_kernels_for_the_cpu(name: str) -> None:
    """Most blocks are equal in every byte; additions in another order change others, with equal error."""
    columns, scheme = 512, GgmlScheme(name)
    values, importance = _rows(columns)
    expected = np.empty((len(values), scheme.row_nbytes(columns)), np.uint8)
    kernels.quantize_rows(name, values.numpy(), importance.numpy(), expected)

    found = blocks.quantize_rows(name, values.to(DEVICE), importance.to(DEVICE)).cpu()

    def error(packed: torch.Tensor) -> torch.Tensor:
        change = ggml.dequantize(GgmlTensor(scheme, columns, packed)) - values
        return (change.square() * importance).sum(1)

    reference = error(torch.from_numpy(expected))
    equal = (found == torch.from_numpy(expected)).reshape(-1, GGML_BLOCKS[name][1]).all(1)
    assert equal.double().mean() > 0.6
    assert (error(found) <= reference * 1.5 + 1e-9).all()
    for rows in (NORMAL, OUTLIERS, DEGENERATE):
        assert float(error(found)[rows].sum()) <= float(reference[rows].sum()) * 1.02 + 1e-9


@pytest.mark.parametrize("name", sorted(GGML_BLOCKS))
def test_values_on_other_devices_are_those_of_gguf_py(name: str) -> None:
    """Equal in every bit, for any bytes whose scales are finite."""
    scheme = GgmlScheme(name)
    packed = ggml.quantize(_rows(512)[0][20:26], scheme).blocks

    assert torch.equal(ggml._values(packed.to(DEVICE), scheme).cpu(), ggml.dequantize(GgmlTensor(scheme, 512, packed)))
