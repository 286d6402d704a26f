"""bitsandbytes' 4-bit grids: sixteen values between -1 and 1, a scale for 64 columns, and 8 bits for each scale.

NF4 and double quantization: QLoRA, arXiv 2305.14314, section 3; the table is that of its appendix E. FP4 is a float of
one sign, two exponent and one fraction bit. Scales are rounded to a dynamic map: arXiv 1511.04561.
"""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from mcpmq.qtensor import PackedScale, QTensor
from mcpmq.scheme import CODEBOOK_COLUMNS, CodebookScheme

TABLES = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    # In the order of the bits: sign, exponent, fraction.
    "fp4": tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)),
}
SCALE_BLOCK = 256  # scales that share a scale themselves
LEAST = 1e-38  # divides what is all zeros


def quantize(pieces: Iterable[Tensor], rows: int, scheme: CodebookScheme) -> QTensor:
    """A whole weight [rows, columns], given some rows at a time, at its nearest values; columns are multiples of 64.

    Values are chosen for scales as they are; that these are then rounded to 8 bits is how bitsandbytes does it.
    """
    whole = QTensor.stacked((_round(piece, scheme) for piece in pieces), rows)
    assert whole.scale is not None
    packed = pack_scale(whole.scale)
    return QTensor(scheme, whole.columns, whole.codes, scale_of(packed), packed_scale=packed)


def _round(weight: Tensor, scheme: CodebookScheme) -> QTensor:
    groups = weight.float().reshape(len(weight), -1, CODEBOOK_COLUMNS)
    scale = groups.abs().amax(-1)
    share = (groups * (1 / scale.clamp(min=LEAST))[..., None]).flatten(1).clamp_(-1, 1)
    return QTensor(scheme, weight.shape[1], _nearest(share, table(scheme.name)), scale)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The index of the level that is nearest to every value: uint8."""
    ascending, order = levels.sort(stable=True)
    found = torch.bucketize(values, (ascending[1:] + ascending[:-1]) / 2, out_int32=True)
    return order.to(torch.uint8)[found]


@cache
def table(name: str) -> Tensor:
    """The value of every code, float32 [16], before it is scaled."""
    return torch.tensor(TABLES[name])


@cache
def scale_table() -> Tensor:
    """The dynamic map, float32 [256] ascending: seven decades, finer in every larger one, both signs, 0 and 1."""
    values = [0.0, 1.0]
    for decade in range(7):
        ends = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10.0 ** (decade - 6) * ((ends[:-1] + ends[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


def pack_scale(scale: Tensor) -> PackedScale:
    """Scales, float32 [rows, groups], in 8 bits."""
    offset = torch.tensor(scale.numpy().mean(dtype="float64"), dtype=torch.float32)
    rest = (scale - offset).flatten()
    blocks = torch.nn.functional.pad(rest, (0, -len(rest) % SCALE_BLOCK)).reshape(-1, SCALE_BLOCK)
    largest = blocks.abs().amax(-1)
    share = (blocks * (1 / largest.clamp(min=LEAST))[:, None]).flatten()[: len(rest)]
    return PackedScale(_nearest(share, scale_table()).reshape(scale.shape), largest, float(offset))


def scale_of(packed: PackedScale) -> Tensor:
    """What packed scales say: float32 [rows, groups]."""
    share = scale_table()[packed.codes.flatten().int()]
    largest = packed.largest.repeat_interleave(SCALE_BLOCK)[: len(share)]
    return (share * largest + packed.offset).reshape(packed.codes.shape)


def dequantize(weight: QTensor) -> Tensor:
    """float32 [rows, columns]."""
    assert isinstance(weight.scheme, CodebookScheme)
    assert weight.scale is not None
    values = table(weight.scheme.name)[weight.codes.int()]
    return values * weight.scale.repeat_interleave(CODEBOOK_COLUMNS, 1)
