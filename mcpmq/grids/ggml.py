"""ggml's grids, through ggml's own code in the xllamacpp wheel: block layouts as llama.cpp reads them."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import repeat

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from numpy.typing import NDArray
from torch import Tensor

from mcpmq import ggml_library
from mcpmq.errors import EngineError
from mcpmq.qtensor import QTensor
from mcpmq.recipe import GGML_BLOCKS, GgmlScheme


@cache
def _library() -> ctypes.CDLL:
    library = ggml_library.library()
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    _check_layouts(library)
    return library


def _check_layouts(library: ctypes.CDLL) -> None:
    """The wheel must lay out blocks as this module, and gguf-py, believe it does."""
    for name, (columns, nbytes) in GGML_BLOCKS.items():
        number = ggml_type(name)
        measured = library.ggml_row_size(number, columns)
        if not measured == nbytes == GGML_QUANT_SIZES[number][1]:
            raise EngineError(
                f"ggml's `{name}` has blocks of {measured} bytes, not {nbytes}", "install the pinned xllamacpp"
            )
        library.ggml_quantize_init(number)


def ggml_type(name: str) -> GGMLQuantizationType:
    """ggml's number of a type, from the name in a recipe."""
    return GGMLQuantizationType[name.upper()]


def round_to(weight: Tensor, scheme: GgmlScheme) -> QTensor:
    """ggml's own fit and rounding of a weight [rows, columns]; columns are zero-padded to whole blocks."""
    columns = weight.shape[1]
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % scheme.block_columns)).contiguous().numpy()
    codes = np.empty((len(padded), scheme.row_nbytes(columns)), np.uint8)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:  # the call releases the interpreter; rows are independent
        parts = np.array_split(padded, threads), np.array_split(codes, threads)
        list(pool.map(_quantize_rows, *parts, repeat(scheme)))
    return QTensor(scheme, columns, torch.from_numpy(codes))


def _quantize_rows(values: NDArray[np.float32], codes: NDArray[np.uint8], scheme: GgmlScheme) -> None:
    rows, columns = values.shape
    number = ggml_type(scheme.type)
    written = _library().ggml_quantize_chunk(number, values.ctypes.data, codes.ctypes.data, 0, rows, columns, None)
    if written != codes.nbytes:
        raise EngineError(f"ggml wrote {written:,} bytes of `{scheme}`, {codes.nbytes:,} were expected")


def dequantize(weight: QTensor) -> Tensor:
    """float32 [rows, columns], by gguf-py."""
    assert isinstance(weight.scheme, GgmlScheme)
    values = gguf_dequantize(weight.codes.numpy(), ggml_type(weight.scheme.type))
    return torch.from_numpy(values)[:, : weight.columns]
