"""Pack codes into 32-bit words, the first code in the lowest bits, for GPTQ, AWQ and compressed-tensors."""

import torch
from torch import Tensor

from mcpmq.qtensor import IntegerTensor
from mcpmq.quantized_model import pack_codes, unpack_codes


def pack_int32(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [rows, columns] of 4 or 8 bits to int32 [rows, words]; the last word is padded with zeros."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (32 // bits)))
    return pack_codes(padded, bits).flatten().view(torch.int32).reshape(len(codes), -1)


def unpack_int32(words: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack int32 [rows, words] to uint8 codes [rows, columns]."""
    packed = words.flatten().view(torch.uint8).reshape(len(words), -1)
    return unpack_codes(packed, bits, 32 // bits * words.shape[1])[:, :columns]


def zero_points(weight: IntegerTensor) -> Tensor:
    """Return the zero point of every group: uint8 [groups, rows]."""
    if weight.zero_point is not None:
        return weight.zero_point.T.contiguous()
    return torch.full(weight.scale.T.shape, weight.scheme.zero_point, dtype=torch.uint8)
