"""Codes in 32-bit words, the first in the lowest bits: what GPTQ, AWQ and compressed-tensors all pack into."""

import torch
from torch import Tensor

from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import pack_codes, unpack_codes
from mcpmq.scheme import IntegerScheme


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, columns] of 4 or 8 bits -> int32 [rows, words]; zeros fill the last word."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (32 // bits)))
    return pack_codes(padded, bits).flatten().view(torch.int32).reshape(len(codes), -1)


def unpack_words(words: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse: uint8 [rows, columns]."""
    packed = words.flatten().view(torch.uint8).reshape(len(words), -1)
    return unpack_codes(packed, bits, 32 // bits * words.shape[1])[:, :columns]


def zeros_of(weight: QTensor) -> Tensor:
    """The zero of every group: uint8 [groups, rows]."""
    assert isinstance(weight.scheme, IntegerScheme)
    assert weight.scale is not None
    if weight.zero is not None:
        return weight.zero.T.contiguous()
    return torch.full(weight.scale.T.shape, 1 << (weight.scheme.bits - 1), dtype=torch.uint8)
