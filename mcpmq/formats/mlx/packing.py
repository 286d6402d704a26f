"""Pack a weight into MLX's tensors, and unpack it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcpmq.errors import FormatError
from mcpmq.formats.hf.int32_packing import pack_int32, unpack_int32
from mcpmq.formats.mlx.modes import bits_of, group_size_of
from mcpmq.grids import ggml
from mcpmq.qtensor import GgmlTensor, IntegerTensor, QTensor
from mcpmq.scheme import GgmlScheme, IntegerScheme, Scheme

HALF_NBYTES = 2


def pack(weight: QTensor, dtype: str) -> dict[str, Tensor]:
    """Return the tensors of a weight [rows = out, columns = in], by their names in its module; `dtype` is not used.

    Raises:
        FormatError: float16 does not represent a bias.
    """
    codes, scale, bias = _affine(weight)
    stored = bias.half()
    if not torch.equal(stored.float(), bias):
        raise FormatError("float16 does not represent the biases of a weight exactly", "keep the weight in the recipe")
    words = pack_int32(codes, bits_of(weight.scheme)).view(torch.uint32)
    return {"weight": words, "scales": scale.half(), "biases": stored}


def unpack(tensors: Mapping[str, Tensor], scheme: Scheme) -> QTensor:
    """Return the weight that `pack` packed."""
    scale, columns = tensors["scales"], tensors["scales"].shape[1] * group_size_of(scheme)
    codes = unpack_int32(tensors["weight"].view(torch.int32), bits_of(scheme), columns).contiguous()
    if isinstance(scheme, IntegerScheme):
        return IntegerTensor(scheme, codes, scale)
    assert isinstance(scheme, GgmlScheme)
    blocks = _blocks(scale, tensors["biases"], scheme)
    return GgmlTensor(scheme, columns, ggml.replace_codes(blocks, codes, scheme))


def _affine(weight: QTensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, and scale and bias float32 [rows, groups]: a code has the value code * scale + bias."""
    if isinstance(weight, IntegerTensor):
        scale = weight.scale.float()
        return weight.codes, scale, -weight.scheme.zero_point * scale
    assert isinstance(weight, GgmlTensor)
    levels = ggml.levels(weight.blocks, weight.columns, weight.scheme)
    bias = -levels.zero_point * levels.scale + (0 if levels.offset is None else levels.offset)
    return ggml.unpack_codes(weight.blocks, weight.scheme), levels.scale.T, bias.T


def _blocks(scale: Tensor, bias: Tensor, scheme: GgmlScheme) -> Tensor:
    """Return blocks with scales and minima, uint8 [rows, bytes of a row]; the codes are zeros."""
    rows, groups = scale.shape
    blocks = torch.zeros(rows, groups, scheme.row_nbytes(1), dtype=torch.uint8)
    blocks[..., :HALF_NBYTES] = scale.contiguous().view(torch.uint8).reshape(rows, groups, HALF_NBYTES)
    if scheme.name in WITH_MINIMA:
        minima = bias.contiguous().view(torch.uint8).reshape(rows, groups, HALF_NBYTES)
        blocks[..., HALF_NBYTES : 2 * HALF_NBYTES] = minima
    return blocks.reshape(rows, -1)


WITH_MINIMA = ("q4_1",)
