"""Compiled rounding on integer grids, compared with the same steps in torch."""

import numpy as np
import pytest
import torch

from mcpmq.formats.gguf.packing import pack_integers
from mcpmq.grids import integer
from mcpmq.scheme import IntegerScheme

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _weights(columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return heavy-tailed rows with zeros, equal magnitudes of both signs, and very small and large values."""
    random = np.random.default_rng(columns)
    rows = random.standard_t(3, (37, columns)).astype(np.float32)
    rows[3], rows[4, :40] = 0, 0
    rows[5, ::3], rows[5, 1::3], rows[6, ::5], rows[6, 1::5] = 7, -7, -9, 9
    rows[7] *= 1e-6
    rows[8] *= 1e3
    return torch.from_numpy(rows).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [32, 100, 576])
@pytest.mark.parametrize("group_size", [16, 32, 128, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_and_scales_are_those_of_torch(
    bits: int, group_size: int | None, columns: int, dtype: torch.dtype
) -> None:
    """Also in the last, smaller group; of equal magnitudes, the first sets the sign of the scale."""
    scheme, weight = IntegerScheme(bits, group_size), _weights(columns, dtype)
    groups = integer._to_groups(weight.float(), scheme)
    first = (groups.abs() == groups.abs().amax(-1, keepdim=True)).int().argmax(-1, keepdim=True)
    largest = groups.gather(-1, first).squeeze(-1) if scheme.scale_divisor < 0 else groups.abs().amax(-1)
    expected = integer.round_to_grid(weight, integer._grid_for_range(largest[None], scheme), scheme)

    found = integer.quantize(weight, scheme)

    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.codes, expected.codes)
    assert found.zero_point is None


def test_rows_need_not_be_contiguous() -> None:
    """A transposed weight and every second row give the codes of their copies."""
    weight, scheme = _weights(64, torch.bfloat16), IntegerScheme(4, 32)
    for view in (weight[::2], weight[:32].T):
        assert torch.equal(integer.quantize(view, scheme).codes, integer.quantize(view.contiguous(), scheme).codes)


@pytest.mark.parametrize(("bits", "group_size"), [(8, 32), (8, None), (4, 32), (4, 64)])
def test_blocks_are_those_of_ggml(bits: int, group_size: int | None) -> None:
    """A block has an fp16 scale and 32 codes: signed bytes, or nibbles, first the low and then the high ones."""
    quantized = integer.quantize(_weights(96, torch.float32), IntegerScheme(bits, group_size))
    codes, scales = quantized.codes.numpy().astype(int), quantized.scale.numpy()

    packed = pack_integers(quantized.codes.numpy(), scales, quantized.scheme)

    for index in range(3):
        block = packed[:, index * (34 if bits == 8 else 18) :]
        column = codes[:, index * 32 : (index + 1) * 32]
        scale = scales[:, index * 32 // (group_size or 96)]
        np.testing.assert_array_equal(block[:, :2].copy().view(np.float16)[:, 0], scale)
        expected = column - 128 & 255 if bits == 8 else column[:, :16] | column[:, 16:] << 4
        np.testing.assert_array_equal(block[:, 2 : 2 + expected.shape[1]], expected)
