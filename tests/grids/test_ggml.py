"""Grids of ggml against the quantizers of gguf-py, and ggml's own search against llama-quantize."""

import numpy as np
import pytest
import torch
from gguf.quants import quantize as gguf_quantize

from mcpmq.grids import ggml
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme

MAX_ERROR = {"iq3_s": 0.25, "q2_k": 0.4, "q3_k": 0.25}  # of few columns, relative to the weight, below 4 bits


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.02


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0"])
def test_blocks_equal_those_of_gguf_py(name: str) -> None:
    """With ggml's search both implementations write the same bytes."""
    weight = _weight(16, 512)

    ours = ggml.quantize(weight, GgmlScheme(name, "ggml")).blocks.numpy()

    assert np.array_equal(ours, gguf_quantize(weight.numpy(), ggml.ggml_type(name)).reshape(ours.shape))


@pytest.mark.parametrize(
    ("name", "bound"),
    [("q8_0", 0.006), ("q6_k", 0.02), ("q5_k", 0.04), ("q5_0", 0.05), ("q4_k", 0.08), ("q4_1", 0.09), ("iq4_nl", 0.085),
     ("iq4_xs", 0.08), ("q3_k", 0.155), ("q2_k", 0.28), ("iq3_s", 0.14), ("q4_0", 0.1)],
)  # fmt: skip
def test_the_relative_error_is_that_of_the_type(name: str, bound: float) -> None:
    """The relative error on normal weights is below the published one."""
    weight = _weight(64, 512)

    error = (ggml.dequantize(ggml.quantize(weight, GgmlScheme(name))) - weight).norm() / weight.norm()

    assert error < bound


@pytest.mark.parametrize("name", GGML_BLOCKS)
@pytest.mark.parametrize("columns", [1, 31, 144, 300])
def test_columns_are_padded_to_whole_blocks(name: str, columns: int) -> None:
    """The blocks contain the padding, and dequantization drops it."""
    weight = _weight(3, columns)

    quantized = ggml.quantize(weight, GgmlScheme(name))

    assert quantized.shape == (3, columns)
    assert quantized.blocks.shape[1] == GgmlScheme(name).row_nbytes(columns)
    assert (ggml.dequantize(quantized) - weight).norm() < MAX_ERROR.get(name, 0.15) * weight.norm()


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_importance_lowers_the_weighted_error(name: str) -> None:
    """The weighted error shrinks, and a common factor of all columns changes no byte."""
    weight = _weight(32, 512)
    importance = torch.randn(512, generator=torch.Generator().manual_seed(5)).mul(1.5).exp()

    def error(weights: torch.Tensor | None) -> float:
        found = ggml.dequantize(ggml.quantize(weight, GgmlScheme(name), weights))
        return float(((found - weight).square() * importance).sum())

    assert error(importance) < 0.97 * error(None)
    scaled = ggml.quantize(weight, GgmlScheme(name), importance * 1024)
    assert torch.equal(scaled.blocks, ggml.quantize(weight, GgmlScheme(name), importance).blocks)


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k", "iq4_nl", "iq4_xs", "q3_k", "q2_k", "iq3_s"])
@pytest.mark.parametrize("size", [3e-9, 1.0, 3e7])
def test_blocks_equal_those_of_llama_quantize(name: str, size: float) -> None:
    """llama-quantize does not scale the importance; our scaling by a power of two changes no byte."""
    weight, scheme = _weight(256, 512), GgmlScheme(name, "ggml")
    importance = size * torch.randn(512, generator=torch.Generator().manual_seed(5)).mul(2).exp()

    codes = ggml.quantize(weight, scheme, importance).blocks

    assert torch.equal(codes, _quantize_without_scaling(weight, scheme, importance))


def _quantize_without_scaling(weight: torch.Tensor, scheme: GgmlScheme, importance: torch.Tensor) -> torch.Tensor:
    codes = np.empty((len(weight), scheme.row_nbytes(weight.shape[1])), np.uint8)
    written = ggml._library().ggml_quantize_chunk(
        ggml.ggml_type(scheme.name), weight.numpy().ctypes.data, codes.ctypes.data, 0, *weight.shape,
        importance.numpy().ctypes.data,
    )  # fmt: skip
    assert written == codes.nbytes
    return torch.from_numpy(codes)


@pytest.mark.parametrize("name", GGML_BLOCKS)
@pytest.mark.parametrize("columns", [31, 300])
def test_columns_without_importance_get_scales(name: str, columns: int) -> None:
    """A block, or a weight, with zero importance is still dequantized near its values."""
    weight = _weight(3, columns)
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(5))
    importance[: columns // 2] = 0

    for weights in (importance, torch.zeros(columns)):
        values = ggml.dequantize(ggml.quantize(weight, GgmlScheme(name), weights))
        assert (values - weight).norm() < 0.3 * weight.norm()


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_blocks_of_consecutive_columns_are_assembled(name: str) -> None:
    """Scales chosen for 256 columns each and the codes of all columns give the blocks of the whole weight."""
    weight, scheme = _weight(3, 512), GgmlScheme(name)
    expected = ggml.quantize(weight, scheme)
    grids = [ggml.choose_grid(part, scheme) for part in weight.split(256, 1)]

    assembled = ggml.assemble(ggml.concat(grids), ggml.unpack_codes(expected.blocks, scheme), 512, scheme)

    assert assembled.columns == 512
    assert torch.equal(assembled.blocks, expected.blocks)


def test_importance_is_scaled_by_a_power_of_two_and_clamped() -> None:
    """The mean is between 1/2 and 1; columns without importance and padding have a millionth."""
    scaled = ggml._positive_importance(torch.tensor([0.0, 40.0, 8.0]), 5)

    np.testing.assert_array_equal(scaled, np.array([1e-6, 1.25, 0.25, 1e-6, 1e-6], np.float32))
