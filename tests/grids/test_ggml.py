"""ggml's grids through the wheel, against gguf-py's own quantizers and dequantizers."""

import numpy as np
import pytest
import torch
from gguf.quants import quantize as gguf_quantize

from mcpmq.grids import ggml
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.02


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0"])
def test_bytes_equal_those_of_gguf_py(name: str) -> None:
    """Two implementations of one layout agree bit for bit."""
    weight = _weight(16, 512)

    ours = ggml.round_to(weight, GgmlScheme(name)).codes.numpy()

    assert np.array_equal(ours, gguf_quantize(weight.numpy(), ggml.ggml_type(name)).reshape(ours.shape))


@pytest.mark.parametrize(
    ("name", "bound"),
    [("q8_0", 0.006), ("q6_k", 0.02), ("q5_k", 0.04), ("q5_0", 0.05), ("q4_k", 0.08), ("q4_1", 0.09), ("iq4_nl", 0.085),
     ("q4_0", 0.1)],
)  # fmt: skip
def test_the_error_is_that_of_the_type(name: str, bound: float) -> None:
    """Relative error on Gaussian weights, as published for each type."""
    weight = _weight(64, 512)

    error = (ggml.dequantize(ggml.round_to(weight, GgmlScheme(name))) - weight).norm() / weight.norm()

    assert error < bound


@pytest.mark.parametrize("name", GGML_BLOCKS)
@pytest.mark.parametrize("columns", [1, 31, 144, 300])
def test_ragged_columns_are_padded_to_whole_blocks(name: str, columns: int) -> None:
    """The padding is in the blocks; the columns that count come back."""
    weight = _weight(3, columns)

    quantized = ggml.round_to(weight, GgmlScheme(name))

    assert quantized.shape == (3, columns)
    assert quantized.codes.shape[1] == GgmlScheme(name).row_nbytes(columns)
    assert (ggml.dequantize(quantized) - weight).norm() < 0.15 * weight.norm()


@pytest.mark.parametrize("name", [name for name in GGML_BLOCKS if name != "q8_0"])
def test_importance_moves_the_error_to_where_it_matters_less(name: str) -> None:
    """The error weighted by importance shrinks; a factor that all columns share changes no byte."""
    weight = _weight(32, 512)
    importance = torch.randn(512, generator=torch.Generator().manual_seed(5)).mul(1.5).exp()

    def error(weighed: torch.Tensor | None) -> float:
        found = ggml.dequantize(ggml.round_to(weight, GgmlScheme(name), weighed))
        return float(((found - weight).square() * importance).sum())

    assert error(importance) < 0.97 * error(None)
    scaled = ggml.round_to(weight, GgmlScheme(name), importance * 1024)
    assert torch.equal(scaled.codes, ggml.round_to(weight, GgmlScheme(name), importance).codes)


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k", "iq4_nl"])
@pytest.mark.parametrize("size", [3e-9, 1.0, 3e7])
def test_blocks_are_those_of_llama_quantize(name: str, size: float) -> None:
    """It gives ggml the importance of a file as it is; ours is scaled, and that rounds nothing."""
    weight, scheme = _weight(256, 512), GgmlScheme(name)
    importance = size * torch.randn(512, generator=torch.Generator().manual_seed(5)).mul(2).exp()

    codes = ggml.round_to(weight, scheme, importance).codes

    assert torch.equal(codes, _by_ggml_itself(weight, scheme, importance))


def _by_ggml_itself(weight: torch.Tensor, scheme: GgmlScheme, importance: torch.Tensor) -> torch.Tensor:
    codes = np.empty((len(weight), scheme.row_nbytes(weight.shape[1])), np.uint8)
    written = ggml._library().ggml_quantize_chunk(
        ggml.ggml_type(scheme.type), weight.numpy().ctypes.data, codes.ctypes.data, 0, *weight.shape,
        importance.numpy().ctypes.data,
    )  # fmt: skip
    assert written == codes.nbytes
    return torch.from_numpy(codes)


@pytest.mark.parametrize("name", GGML_BLOCKS)
@pytest.mark.parametrize("columns", [31, 300])
def test_columns_of_no_importance_still_get_scales(name: str, columns: int) -> None:
    """A block that saw nothing, all columns that saw nothing, and padding: the weights come back all the same."""
    weight = _weight(3, columns)
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(5))
    importance[: columns // 2] = 0

    for seen in (importance, torch.zeros(columns)):
        found = ggml.dequantize(ggml.round_to(weight, GgmlScheme(name), seen))
        assert (found - weight).norm() < 0.3 * weight.norm()
