"""The column loops of LDLQ and of the descent as Triton kernels: one launch for some columns of all rows.

Rows are independent, so a program rounds some rows through all columns and keeps their state in registers. The results
are those of `grids.kernels.columns`, up to products that are fused with sums. This is the only module that imports
Triton, which the CUDA builds of torch bring with them. Annotations are quoted, because Triton evaluates them.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

ROWS, NUM_WARPS = 32, 4  # of a program
MAGIC = tl.constexpr(1.5 * 2**23)  # added and subtracted, it rounds to integers, halves to even
LARGEST_STEP = tl.constexpr(2.0**20)  # far outside of all codes, and exact with MAGIC

Pointer = Any  # of Triton: a tensor in the call, a pointer in the kernel


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function with Triton at its first call, or interpret it with TRITON_INTERPRET=1."""
    return triton.jit(function)


@kernel
def _round(steps: "Any") -> "Any":
    """Round to the nearest integer, halves to even."""
    return (tl.minimum(tl.maximum(steps, -LARGEST_STEP), LARGEST_STEP) + MAGIC) - MAGIC


@kernel
def _nearest_in_table(value: "Any", table: "Pointer", levels: tl.constexpr) -> "Any":
    """Return the number of midpoints of an ascending table below values: the nearest code, the lower one if equal."""
    code = tl.zeros_like(value).to(tl.int32)
    for index in range(levels - 1):
        midpoint = (tl.load(table + index + 1) + tl.load(table + index)) / 2
        code += tl.where(value > midpoint, 1, 0)
    return code


@kernel
def _take(tile: "Any", column: "Any", step: "Any") -> "Any":
    """Return one column of a tile [columns, rows]."""
    return tl.sum(tl.where(column[:, None] == step, tile, 0.0), axis=0)


@kernel
def _round_columns(
    factors: "Pointer",
    stride: int,
    residual: "Pointer",
    compensated: "Pointer",
    codes: "Pointer",
    groups: "Pointer",
    grid: "Pointer",
    table: "Pointer",
    rows: int,
    columns: int,
    lowest: float,
    highest: float,
    width: tl.constexpr,
    block: tl.constexpr,
    levels: tl.constexpr,
) -> None:
    row = tl.program_id(0) * block + tl.arange(0, block)
    live, column = row < rows, tl.arange(0, width)
    places = column[:, None] * rows + row[None, :]
    tile = tl.load(compensated + places, mask=(column < columns)[:, None] & live[None, :], other=0.0)
    for step in range(columns):
        part = grid + tl.load(groups + step).to(tl.int64) * 4 * rows + row
        divisor, scale = tl.load(part, mask=live, other=1.0), tl.load(part + rows, mask=live, other=1.0)
        zero = tl.load(part + 2 * rows, mask=live, other=0.0)
        offset = tl.load(part + 3 * rows, mask=live, other=0.0)
        target, place = _take(tile, column, step), step * rows + row
        if levels:
            code = _nearest_in_table(tl.div_rn(target, divisor), table, levels)
            value = tl.load(table + code) * scale
        else:
            code = _round(tl.div_rn(target - offset, divisor)) + zero
            code = tl.minimum(tl.maximum(code, lowest), highest)
            value = (code - zero) * scale + offset
        error = tl.load(residual + place, mask=live, other=0.0) - value
        tl.store(codes + place, code.to(tl.uint8), mask=live)
        tl.store(residual + place, error, mask=live)
        tl.store(compensated + place, value - target, mask=live)
        factor = tl.load(factors + step * stride + column, mask=(column > step) & (column < columns), other=0.0)
        tile += factor[:, None] * error[None, :]


def round_columns(
    factors: Tensor,
    residual: Tensor,
    compensated: Tensor,
    codes: Tensor,
    groups: Tensor,
    grid: Tensor,
    table: Tensor | None,
    bounds: tuple[int, int],
) -> None:
    """Round columns as `grids.kernels.columns` does, with the same arguments; `groups` is int32 [columns]."""
    columns, rows = residual.shape
    _round_columns[(triton.cdiv(rows, ROWS),)](
        *(factors, factors.stride(0), residual, compensated, codes, groups, grid, grid if table is None else table),
        *(rows, columns, float(bounds[0]), float(bounds[1])),
        width=_width(columns),
        block=ROWS,
        num_warps=NUM_WARPS,
        levels=0 if table is None else len(table),
    )


def _width(columns: int) -> int:
    """Return the columns of a tile: a power of two, and not many different ones, because each is compiled."""
    return max(64, 1 << (columns - 1).bit_length())


@kernel
def _better_scale(scale: "Any", gain: "Any", curvature: "Any") -> "Any":
    """Return the change of scales to the nearest fp16 of the best ones, where these are nearer to them."""
    best = scale - tl.where(curvature > 0, tl.div_rn(gain, tl.where(curvature > 0, curvature, 1.0)), 0.0)
    rounded = tl.minimum(tl.maximum(best, -65504.0), 65504.0).to(tl.float16).to(tl.float32)
    is_better = (tl.abs(rounded - best) < tl.abs(scale - best)) & (rounded != 0) & (tl.abs(best) < 65520.0)
    return tl.where(is_better, rounded - scale, 0.0)


@kernel
def _hessian_row(
    corner: "Pointer", diagonal: "Pointer", factor: float, step: "Any", columns: int, column: "Any", used: "Any"
) -> "Any":
    """Return the entries of the Hessian of a column with all columns of the tile."""
    entries = factor * tl.load(corner + step * columns + column, mask=used, other=0.0)
    return entries + tl.where(column == step, tl.load(diagonal + step), 0.0)


@kernel
def _nearest_unit(
    target: "Any",
    limits: "Pointer",
    table: "Pointer",
    rows: int,
    live: "Any",
    levels: tl.constexpr,
) -> "Any":
    """Return the nearest value of the table, or the nearest integer inside the limits of each row."""
    if levels:
        nearest = tl.load(table + _nearest_in_table(target, table, levels))
    else:
        low, high = tl.load(limits, mask=live, other=0.0), tl.load(limits + rows, mask=live, other=0.0)
        nearest = tl.minimum(tl.maximum(_round(target), low), high)
    return nearest


@kernel
def _improve_columns(
    corner: "Pointer",
    factor: float,
    diagonal: "Pointer",
    slope: "Pointer",
    units: "Pointer",
    scale: "Pointer",
    change: "Pointer",
    groups: "Pointer",
    sizes: "Pointer",
    bounds: "Pointer",
    table: "Pointer",
    rows: int,
    columns: int,
    width: tl.constexpr,
    block: tl.constexpr,
    levels: tl.constexpr,
    adjusts: tl.constexpr,
) -> None:
    row = tl.program_id(0) * block + tl.arange(0, block)
    live, column = row < rows, tl.arange(0, width)
    used = column < columns
    places, inside = column[:, None] * rows + row[None, :], used[:, None] & live[None, :]
    first_slope = tl.load(slope + places, mask=inside, other=0.0)
    first_units = tl.load(units + places, mask=inside, other=0.0)
    scale_places = tl.load(groups + column, mask=used, other=0).to(tl.int64)[:, None] * rows + row[None, :]
    first_scale = tl.load(scale + scale_places, mask=inside, other=0.0)
    slopes, new_units, new_scale, own_scale = first_slope, first_units, first_scale, row * 0.0
    for step in range(columns):
        group, size = tl.load(groups + step).to(tl.int64), tl.load(sizes + step)
        if size > 0:
            own_scale = tl.load(scale + group * rows + row, mask=live, other=0.0)
            own = ((column >= step) & (column < step + size))[:, None]
            if adjusts:
                products = first_slope * 0.0
                for inner in range(step, step + size):
                    unit = tl.load(units + inner * rows + row, mask=live, other=0.0)
                    entries = _hessian_row(corner, diagonal, factor, inner, columns, column, used)
                    products += entries[:, None] * unit[None, :]
                curvature = tl.sum(tl.where(own, products * first_units, 0.0), axis=0)
                gain = tl.sum(tl.where(own, slopes * first_units, 0.0), axis=0)
                adjustment = _better_scale(own_scale, gain, curvature)
                own_scale += adjustment
                slopes += products * adjustment[None, :]
            new_scale = tl.where(own, own_scale[None, :], new_scale)
        entries = _hessian_row(corner, diagonal, factor, step, columns, column, used)
        own_slope = _take(slopes, column, step)
        curvature = factor * tl.load(corner + step * columns + step) + tl.load(diagonal + step)
        unit = tl.load(units + step * rows + row, mask=live, other=0.0)
        target = unit - tl.div_rn(1.0, curvature) * tl.div_rn(own_slope, tl.where(own_scale == 0, 1.0, own_scale))
        rounded = _nearest_unit(target, bounds + group * 2 * rows + row, table, rows, live, levels)
        new_units = tl.where(column[:, None] == step, rounded[None, :], new_units)
        slopes += entries[:, None] * ((rounded - unit) * own_scale)[None, :]
    moved = new_units * new_scale - first_units * first_scale
    is_better = tl.sum(moved * (slopes + first_slope), axis=0) < 0
    kept, starts = is_better[None, :] & inside, (tl.load(sizes + column, mask=used, other=0) > 0)[:, None]
    tl.store(units + places, new_units, mask=kept)
    tl.store(scale + scale_places, new_scale, mask=kept & starts)
    before = tl.load(change + places, mask=inside, other=0.0)
    tl.store(change + places, before + moved, mask=kept)


def improve_columns(
    corner: Tensor,
    factor: float,
    diagonal: Tensor,
    slope: Tensor,
    units: Tensor,
    scale: Tensor,
    change: Tensor,
    groups: Tensor,
    sizes: Tensor,
    bounds: Tensor,
    table: Tensor | None,
    adjust_scales: bool,
) -> None:
    """Improve the codes of consecutive columns, and with `adjust_scales` before them the scale of each group.

    A row keeps its codes and scales if its loss does not get smaller. The Hessian of the columns is `factor` times
    `corner`, float32 [columns, columns] contiguous, plus `diagonal`. slope: half the slope of the loss. units: values
    over their scale, float32 [columns, rows], replaced. scale: float32 [groups, rows], replaced. change: of the values,
    added to. groups: int32 [columns]. sizes: int32 [columns], the columns of a group at its first one, else 0. bounds:
    lowest and highest units, float32 [groups, 2, rows].
    """
    columns, rows = units.shape
    _improve_columns[(triton.cdiv(rows, ROWS),)](
        *(corner, factor, diagonal, slope, units, scale, change, groups, sizes, bounds),
        *(bounds if table is None else table, rows, columns),
        width=_width(columns),
        block=ROWS,
        num_warps=NUM_WARPS,
        levels=0 if table is None else len(table),
        adjusts=adjust_scales,
    )
