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

from mcpmq.errors import EngineError
from mcpmq.grids.ggml_blocks import LAYOUTS
from mcpmq.grids.levels import Levels
from mcpmq.qtensor import QTensor
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme
from mcpmq.system import ggml_library

LEAST_IMPORTANCE = 1e-6  # of a column, where the mean is between 1/2 and 1


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


def round_to(weight: Tensor, scheme: GgmlScheme, importance: Tensor | None = None) -> QTensor:
    """ggml's own fit and rounding of a weight [rows, columns]; columns are zero-padded to whole blocks.

    `importance`, float32 [columns], says how much an error in each column matters (the mean square of its inputs);
    ggml then searches the scales that make the weighted error small. `q8_0` takes no notice of it.
    """
    columns = weight.shape[1]
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % scheme.block_columns)).contiguous().cpu().numpy()
    codes = np.empty((len(padded), scheme.row_nbytes(columns)), np.uint8)
    matters = None if importance is None else _positive(importance, padded.shape[1])
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:  # the call releases the interpreter; rows are independent
        parts = np.array_split(padded, threads), np.array_split(codes, threads)
        list(pool.map(_quantize_rows, *parts, repeat(scheme), repeat(matters)))
    return QTensor(scheme, columns, torch.from_numpy(codes))


def _positive(importance: Tensor, columns: int) -> NDArray[np.float32]:
    """A block without any importance would get a scale of zero: the least is about a millionth of the mean.

    Scaling by a power of two rounds nothing: blocks are the bytes that llama-quantize makes of the same importance.
    """
    exponent = torch.frexp(importance.float().mean()).exponent.clamp(-126, 126)
    known = torch.ldexp(importance.float(), -exponent)
    return torch.nn.functional.pad(known, (0, columns - len(known))).clamp(min=LEAST_IMPORTANCE).cpu().numpy()


def _quantize_rows(
    values: NDArray[np.float32], codes: NDArray[np.uint8], scheme: GgmlScheme, importance: NDArray[np.float32] | None
) -> None:
    rows, columns = values.shape
    matters = None if importance is None else importance.ctypes.data
    written = _library().ggml_quantize_chunk(
        ggml_type(scheme.type), values.ctypes.data, codes.ctypes.data, 0, rows, columns, matters
    )
    if written != codes.nbytes:
        raise EngineError(f"ggml wrote {written:,} bytes of `{scheme}`, {codes.nbytes:,} were expected")


def levels(blocks: Tensor, scheme: GgmlScheme) -> Levels:
    """The values that fitted blocks, uint8 [rows, bytes of a row], can hold with their scales as they are."""
    layout, rows = LAYOUTS[scheme.type], len(blocks)
    scale, base = layout.scales(_single(blocks, scheme))
    count = scale.size // rows
    width = scheme.block_columns // layout.groups
    return Levels(
        groups=[column // width for column in range(count * width)],
        scale=_rows_side_by_side(scale, rows),
        zero=torch.tensor(float(layout.zero)).expand(count, rows),
        lowest=1 if scheme.type == "q8_0" else 0,  # -127..127, as ggml's own
        highest=2**layout.bits - 1,
        base=None if base is None else _rows_side_by_side(base, rows),
        table=None if layout.values is None else torch.tensor(layout.values, dtype=torch.float32),
    )


def _rows_side_by_side(values: NDArray[np.float32], rows: int) -> Tensor:
    return torch.from_numpy(values).reshape(rows, -1).T.contiguous()


def with_codes(blocks: Tensor, codes: Tensor, scheme: GgmlScheme) -> Tensor:
    """Blocks, uint8 [rows, bytes of a row], with other codes, uint8 [rows, columns of whole blocks], scales kept."""
    changed = _single(blocks, scheme).copy()
    LAYOUTS[scheme.type].pack(changed, codes.reshape(len(changed), -1).cpu().numpy())
    return torch.from_numpy(changed).reshape(blocks.shape)


def codes_of(blocks: Tensor, scheme: GgmlScheme) -> Tensor:
    """The codes, uint8 [rows, columns of whole blocks], in blocks, uint8 [rows, bytes of a row]."""
    return torch.from_numpy(LAYOUTS[scheme.type].unpack(_single(blocks, scheme))).reshape(len(blocks), -1)


def _single(blocks: Tensor, scheme: GgmlScheme) -> NDArray[np.uint8]:
    single: NDArray[np.uint8] = blocks.reshape(-1, GGML_BLOCKS[scheme.type][1]).numpy()
    return single


def dequantize(weight: QTensor) -> Tensor:
    """float32 [rows, columns], by gguf-py."""
    assert isinstance(weight.scheme, GgmlScheme)
    values = gguf_dequantize(weight.codes.numpy(), ggml_type(weight.scheme.type))
    return torch.from_numpy(values)[:, : weight.columns]
