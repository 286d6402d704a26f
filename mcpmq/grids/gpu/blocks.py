"""Quantize to ggml's block types on tensors of a GPU, as `grids.kernels` does on the CPU.

The searches are the same, so that errors are equal up to rounding. `iq3_s` has kernels for the CPU only.
"""

import torch
from torch import Tensor

from mcpmq.grids.ggml_blocks import BLOCK_LAYOUTS, write_fp16
from mcpmq.grids.gpu import affine, scaled
from mcpmq.scheme import GGML_BLOCKS

NAMES = frozenset(affine.BLOCK_GRIDS) | frozenset(scaled.BLOCK_GRIDS) | frozenset(scaled.SMALL_BLOCKS) | {"q4_1"}
CHUNK_WEIGHTS = 1 << 25  # at a time; the search needs several arrays of this size
Q4_1_TOP = 15.0


def quantize_rows(name: str, values: Tensor, importance: Tensor) -> Tensor:
    """Quantize rows, float32 [rows, columns], into blocks, uint8 [rows, bytes of a row].

    `importance`, float32 [columns], is positive with a mean near 1; all values are finite.
    """
    columns, nbytes = GGML_BLOCKS[name]
    groups = BLOCK_LAYOUTS[name].num_groups
    weights = importance.reshape(-1, groups, columns // groups)
    parts = []
    for rows in torch.split(values, max(1, CHUNK_WEIGHTS // values.shape[1])):
        blocks = torch.zeros(rows.numel() // columns, nbytes, dtype=torch.uint8, device=values.device)
        codes = _search(name, rows.reshape(len(rows), *weights.shape), weights, blocks)
        BLOCK_LAYOUTS[name].pack_codes(blocks, codes.to(torch.uint8).reshape(len(blocks), columns))
        parts.append(blocks.reshape(len(rows), -1))
    return torch.cat(parts)


def _search(name: str, values: Tensor, weights: Tensor, blocks: Tensor) -> Tensor:
    """Write the scales of blocks, and return the codes of values."""
    if name == "q4_1":
        return _search_q4_1(values, weights, blocks)
    if levels := scaled.SMALL_BLOCKS.get(name):
        step = scaled.choose_half(values, weights, levels)
        write_fp16(blocks, 0, step.reshape(-1, 1))
        return scaled.nearest_codes(values, step, levels) + BLOCK_LAYOUTS[name].zero_point
    if signed := scaled.BLOCK_GRIDS.get(name):
        codes, scale = scaled.search_blocks(values, weights, signed)
        _WRITE_SCALE_CODES[name](blocks, codes.reshape(len(blocks), -1).to(torch.int32))
        write_fp16(blocks, _FIRST_BYTES[name], scale.reshape(-1, 1))
        return scaled.nearest_codes(values, scale * codes, signed.levels) + BLOCK_LAYOUTS[name].zero_point
    grid = affine.BLOCK_GRIDS[name]
    found = affine.search_blocks(values, weights, grid)
    parts = (part.reshape(len(blocks), -1).to(torch.uint8) for part in (found.scale_codes, found.minimum_codes))
    (_write_nibble_pairs if name == "q2_k" else _write_6_bit)(blocks, *parts)
    write_fp16(blocks, _FIRST_BYTES[name], found.scale.reshape(-1, 1))
    write_fp16(blocks, _FIRST_BYTES[name] + 2, found.minimum.reshape(-1, 1))
    return affine.nearest_codes(values, *found.grid(grid), grid.top)


def _search_q4_1(values: Tensor, weights: Tensor, blocks: Tensor) -> Tensor:
    found = affine.search(values, weights, affine.BLOCK_GRIDS["q4_k"].steps, Q4_1_TOP, torch.inf)
    step, offset = affine.choose_half(values, weights, found, Q4_1_TOP)
    write_fp16(blocks, 0, step.reshape(-1, 1))
    write_fp16(blocks, 2, offset.reshape(-1, 1))
    return affine.nearest_codes(values, offset, step, Q4_1_TOP)


_FIRST_BYTES = {"q4_k": 0, "q5_k": 0, "q2_k": 80, "iq4_xs": 0, "q3_k": 108, "q6_k": 208}  # of the fp16


def _write_6_bit(blocks: Tensor, scales: Tensor, minima: Tensor) -> None:
    """Write codes as `grids.kernels.k_quants.store_codes_6_bit`."""
    blocks[:, 4:8] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    blocks[:, 8:12] = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    blocks[:, 12:16] = (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4


def _write_nibble_pairs(blocks: Tensor, scales: Tensor, minima: Tensor) -> None:
    """Write the codes of `q2_k`: those of scales in the lower four bits and those of minima in the upper ones."""
    blocks[:, :16] = scales | minima << 4


def _write_8_bit(blocks: Tensor, codes: Tensor) -> None:
    """Write the codes of `q6_k` in two's complement."""
    blocks[:, 192:208] = codes.to(torch.int8).view(torch.uint8)


def _write_q3_k(blocks: Tensor, codes: Tensor) -> None:
    """Write codes plus 32: nibbles in 8 bytes from byte 96, then the two upper bits in 4 bytes."""
    unsigned = (codes + 32).to(torch.uint8)
    lower, upper = unsigned & 15, (unsigned >> 4).reshape(-1, 4, 4)
    blocks[:, 96:104] = lower[:, :8] | lower[:, 8:] << 4
    blocks[:, 104:108] = upper[:, 0] | upper[:, 1] << 2 | upper[:, 2] << 4 | upper[:, 3] << 6


def _write_iq4_xs(blocks: Tensor, codes: Tensor) -> None:
    """Write codes plus 32: two upper bits each in bytes 2 and 3, the others in nibbles from byte 4."""
    unsigned = (codes + 32).to(torch.uint8)
    lower, upper = (unsigned & 15).reshape(-1, 4, 2), (unsigned >> 4).reshape(-1, 2, 4)
    blocks[:, 2:4] = upper[..., 0] | upper[..., 1] << 2 | upper[..., 2] << 4 | upper[..., 3] << 6
    blocks[:, 4:8] = lower[..., 0] | lower[..., 1] << 4


_WRITE_SCALE_CODES = {"q6_k": _write_8_bit, "q3_k": _write_q3_k, "iq4_xs": _write_iq4_xs}
