"""Grids of ggml in the block layouts that llama.cpp reads, with scales chosen by own kernels or by ggml itself."""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import repeat

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.errors import EngineError, ScaleError
from mcpmq.grids import kernels
from mcpmq.grids.ggml_blocks import BLOCK_LAYOUTS, BlockLayout, write_fp16
from mcpmq.grids.levels import Levels
from mcpmq.grids.limits import range_factor, scale_limits
from mcpmq.grids.scale_search import SHARES, search_scale
from mcpmq.grids.vector_table import vector_table
from mcpmq.qtensor import GgmlTensor
from mcpmq.scheme import GGML_BLOCKS, GgmlScheme
from mcpmq.system import ggml_library

SEARCH_CHUNK_WEIGHTS = 1 << 19  # at a time, so that the floats stay in the cache
DEVICE_CHUNK_WEIGHTS = 1 << 26  # on devices other than the CPU: few large operations
MIN_IMPORTANCE = 1e-6  # of a column, where the mean is between 1/2 and 1


@cache
def _library() -> ctypes.CDLL:
    library = ggml_library.load_library()
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
    """Check that the wheel, gguf-py and `GGML_BLOCKS` agree about the size of every block."""
    for name, (columns, nbytes) in GGML_BLOCKS.items():
        number = ggml_type(name)
        measured = library.ggml_row_size(number, columns)
        if not measured == nbytes == GGML_QUANT_SIZES[number][1]:
            raise EngineError(
                f"ggml's `{name}` has blocks of {measured} bytes, not {nbytes}", "install the pinned xllamacpp"
            )
        library.ggml_quantize_init(number)


def ggml_type(name: str) -> GGMLQuantizationType:
    """Return ggml's type number for the name of a scheme."""
    return GGMLQuantizationType[name.upper()]


def quantize(weight: Tensor, scheme: GgmlScheme, importance: Tensor | None = None) -> GgmlTensor:
    """Quantize a weight [rows, columns] by the search of the scheme; zeros pad the columns to whole blocks.

    `importance`, float32 [columns], is the mean square of the input of each column, which weights its errors. ggml's
    own search, in the xllamacpp wheel, ignores it for `q8_0`.

    Raises:
        ScaleError: a value is too large for the scales.
        MissingExtra: the search is ggml's, and xllamacpp is not installed.
        EngineError: ggml wrote another number of bytes than the scheme has.
    """
    columns = weight.shape[1]
    _check_largest(weight, scheme)
    padded, padding = weight.float(), scheme.padded_columns(columns) - columns
    if padding:
        padded = torch.nn.functional.pad(padded, (0, padding))
    weights = _importance(importance, columns, scheme)
    quantize_values = _quantize_on_gpu if weight.is_cuda and _has_gpu_search(scheme) else _quantize_on_cpu
    return GgmlTensor(scheme, columns, quantize_values(padded.contiguous(), scheme, weights))


def _has_gpu_search(scheme: GgmlScheme) -> bool:
    from mcpmq.grids.gpu.blocks import NAMES  # numba takes a second to import

    return scheme.search == "mcpmq" and scheme.name in NAMES


def _quantize_on_gpu(values: Tensor, scheme: GgmlScheme, importance: Tensor | None) -> Tensor:
    from mcpmq.grids.gpu.blocks import quantize_rows

    assert importance is not None
    return quantize_rows(scheme.name, values, importance.to(values.device))


def _quantize_on_cpu(values: Tensor, scheme: GgmlScheme, importance: Tensor | None) -> Tensor:
    """Quantize on all threads of torch."""
    threads, rows = torch.get_num_threads(), values.cpu().numpy()
    blocks = np.empty((len(rows), scheme.row_nbytes(rows.shape[1])), np.uint8)
    weights = None if importance is None else importance.cpu().numpy()
    with ThreadPoolExecutor(threads) as pool:  # the call releases the interpreter lock; rows are independent
        parts = np.array_split(rows, threads), np.array_split(blocks, threads)
        list(pool.map(_quantize_rows, *parts, repeat(scheme), repeat(weights)))
    return torch.from_numpy(blocks).to(values.device)


def _check_largest(weight: Tensor, scheme: GgmlScheme) -> None:
    limits = scale_limits(scheme, weight.shape[1])
    assert limits
    if (largest := float(torch.stack(weight.aminmax()).abs().max())) > limits.max_magnitude:
        raise ScaleError(
            f"a value of {largest:.3g} is too large for `{scheme}`, which represents values up to"
            f" {limits.max_magnitude:.3g}",
            'use `"keep"` for this weight',
        )


def _importance(importance: Tensor | None, columns: int, scheme: GgmlScheme) -> Tensor | None:
    """Return the importance of the padded columns; None for ggml, which has another search without importance."""
    if importance is None and scheme.search == "ggml":
        return None
    return _positive_importance(
        torch.ones(columns) if importance is None else importance, scheme.padded_columns(columns)
    )


def _positive_importance(importance: Tensor, columns: int) -> Tensor:
    """Scale and clamp importance to at least about a millionth of its mean: with none, a block would have no scale.

    The scale is a power of two and rounds nothing, so the blocks equal those of llama-quantize for the same importance.
    """
    exponent = torch.frexp(importance.float().mean()).exponent.clamp(-126, 126)
    scaled = torch.ldexp(importance.float(), -exponent)
    return torch.nn.functional.pad(scaled, (0, columns - len(scaled))).clamp(min=MIN_IMPORTANCE)


def _quantize_rows(
    values: NDArray[np.float32], blocks: NDArray[np.uint8], scheme: GgmlScheme, importance: NDArray[np.float32] | None
) -> None:
    if scheme.search == "mcpmq":
        assert importance is not None
        kernels.quantize_rows(scheme.name, values, importance, blocks)
        return
    rows, columns = values.shape
    importance_address = None if importance is None else importance.ctypes.data
    written = _library().ggml_quantize_chunk(
        ggml_type(scheme.name), values.ctypes.data, blocks.ctypes.data, 0, rows, columns, importance_address
    )
    if written != blocks.nbytes:
        raise EngineError(
            f"ggml wrote {written:,} bytes of `{scheme}`, expected {blocks.nbytes:,}",
            "install the pinned version with `pip install 'mcpmq[gguf]'`",
        )


def choose_grid(weight: Tensor, scheme: GgmlScheme, importance: Tensor | None = None) -> Tensor:
    """Choose the scales of a weight [rows, columns]: blocks uint8 [rows, bytes of a row] with codes to be replaced."""
    return quantize(weight, scheme, importance).blocks


def fit_grid(weight: Tensor, scheme: GgmlScheme, importance: Tensor) -> Tensor:
    """Choose scales as `choose_grid`, but by a finer search if a block has one fp16 scale and no minimum.

    Raises:
        ScaleError: a value is too large for the scales.
    """
    layout = BLOCK_LAYOUTS[scheme.name]
    if layout.scale_divisor is None:
        return choose_grid(weight, scheme, importance)
    _check_largest(weight, scheme)
    padding = scheme.padded_columns(weight.shape[1]) - weight.shape[1]
    padded = torch.nn.functional.pad(importance.float(), (0, padding)) * range_factor(importance)
    weights = padded.reshape(-1, scheme.block_columns)
    chunk_weights = SEARCH_CHUNK_WEIGHTS if weight.device.type == "cpu" else DEVICE_CHUNK_WEIGHTS
    rows = torch.split(torch.nn.functional.pad(weight, (0, padding)), max(1, chunk_weights // len(padded)))
    scales = [
        _fit_blocks(chunk.float().reshape(len(chunk), -1, scheme.block_columns), weights, layout) for chunk in rows
    ]
    row_nbytes = scheme.row_nbytes(weight.shape[1])
    blocks = torch.zeros(len(weight), row_nbytes, dtype=torch.uint8, device=weight.device)
    return rescale(blocks, torch.cat(scales).T, scheme)


def _fit_blocks(blocks: Tensor, importance: Tensor, layout: BlockLayout) -> Tensor:
    """Return the scale of every block: weights float32 [rows, blocks, columns of a block] -> [rows, blocks]."""
    assert layout.scale_divisor
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1) / layout.scale_divisor
    extreme = torch.where(extreme == 0, 1, extreme)
    starts = [share * extreme for share in SHARES]
    scale = search_scale(blocks, importance, starts, lambda _: layout.to_units).scale
    return torch.where(blocks.any(-1), scale, 0)


def scale_columns(columns: int, scheme: GgmlScheme) -> int:
    """Return how many of `columns` columns have the same scale: a part of a block."""
    return scheme.block_columns // BLOCK_LAYOUTS[scheme.name].num_groups


def levels(blocks: Tensor, columns: int, scheme: GgmlScheme) -> Levels:
    """Return the values on the grid of `columns` columns with the scales of blocks, uint8 [rows, bytes of a row]."""
    layout, rows = BLOCK_LAYOUTS[scheme.name], len(blocks)
    scale, offset = layout.unpack_scales(_split_blocks(blocks, scheme))
    groups, table = scale.numel() // rows, None
    if layout.values is not None:
        table = torch.tensor(layout.values, dtype=torch.float32, device=blocks.device)
    return Levels(
        groups=[column // scale_columns(columns, scheme) for column in range(columns)],
        scale=_group_by_row(scale, rows),
        zero_point=torch.tensor(float(layout.zero_point), device=blocks.device).expand(groups, rows),
        qmin=layout.qmin,
        qmax=2**layout.bits - 1,
        offset=None if offset is None else _group_by_row(offset, rows),
        table=table,
        vectors=vector_table().vectors if scheme.vector_columns > 1 else None,
        has_fp16_scales=layout.has_fp16_scales,
    )


def rescale(blocks: Tensor, scale: Tensor, scheme: GgmlScheme) -> Tensor:
    """Return blocks with other scales, float32 [groups, rows] that fp16 represents; others cannot be replaced."""
    changed = _split_blocks(blocks, scheme).clone()
    if BLOCK_LAYOUTS[scheme.name].has_fp16_scales:
        write_fp16(changed, 0, scale.T.reshape(len(changed), 1))
    return changed.reshape(blocks.shape)


def _group_by_row(values: Tensor, rows: int) -> Tensor:
    """Reshape values per group from [blocks, groups of a block] to [groups of a row, rows]."""
    return values.reshape(rows, -1).T.contiguous()


def concat(grids: Sequence[Tensor]) -> Tensor:
    """Concatenate the blocks of consecutive columns."""
    return torch.cat(list(grids), dim=1)


def assemble(blocks: Tensor, codes: Tensor, columns: int, scheme: GgmlScheme) -> GgmlTensor:
    """Combine codes uint8 [rows, padded columns] with the scales in blocks."""
    return GgmlTensor(scheme, columns, replace_codes(blocks, codes, scheme))


def replace_codes(blocks: Tensor, codes: Tensor, scheme: GgmlScheme) -> Tensor:
    """Return blocks, uint8 [rows, bytes of a row], with the codes uint8 [rows, padded columns] and the same scales."""
    changed = _split_blocks(blocks, scheme).clone()
    BLOCK_LAYOUTS[scheme.name].pack_codes(changed, codes.reshape(len(changed), -1))
    return changed.reshape(blocks.shape)


def unpack_codes(blocks: Tensor, scheme: GgmlScheme) -> Tensor:
    """Return the codes, uint8 [rows, padded columns], of blocks, uint8 [rows, bytes of a row]."""
    return BLOCK_LAYOUTS[scheme.name].unpack_codes(_split_blocks(blocks, scheme)).reshape(len(blocks), -1)


def _split_blocks(blocks: Tensor, scheme: GgmlScheme) -> Tensor:
    """Reshape rows to uint8 [blocks, bytes of a block]."""
    return blocks.reshape(-1, GGML_BLOCKS[scheme.name][1])


def dequantize(weight: GgmlTensor) -> Tensor:
    """Return the values, float32 [rows, columns], as gguf-py computes them."""
    if weight.blocks.device.type == "cpu":
        values = gguf_dequantize(weight.blocks.numpy(), ggml_type(weight.scheme.name))
        return torch.from_numpy(values)[:, : weight.columns]
    return _values(weight.blocks, weight.scheme)[:, : weight.columns]


def _values(blocks: Tensor, scheme: GgmlScheme) -> Tensor:
    """Return the values that gguf-py computes, on any device: float32 [rows, padded columns]."""
    split, layout = _split_blocks(blocks, scheme), BLOCK_LAYOUTS[scheme.name]
    scale, offset = (None if part is None else part[..., None] for part in layout.unpack_scales(split))
    codes = layout.unpack_codes(split).reshape(len(split), layout.num_groups, -1)
    assert scale is not None
    if layout.values is None:
        values = (codes.float() - layout.zero_point).mul_(scale)
    else:
        table = torch.tensor(layout.values, dtype=torch.float32, device=blocks.device)
        values = table[codes.int()].mul_(scale)
    return (values if offset is None else values.add_(offset)).reshape(len(blocks), -1)
