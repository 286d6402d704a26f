"""4-bit codebooks of bitsandbytes: sixteen values from -1 to 1, one scale per 64 columns, scales quantized to 8 bits.

NF4 and double quantization: QLoRA, arXiv 2305.14314, section 3; the values are those of its appendix E. FP4 is a float
of one sign, two exponent and one fraction bit. Scales are rounded to a dynamic map: arXiv 1511.04561.
"""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from mcpmq.qtensor import CodebookTensor, DoubleQuantScale, concat_rows
from mcpmq.scheme import CODEBOOK_GROUP_SIZE, CodebookScheme

CODE_VALUES = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    # In the order of the code's bits: sign, exponent, fraction.
    "fp4": tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)),
}
SCALE_BLOCK_SIZE = 256  # scales that share an absmax
ABSMAX_EPSILON = 1e-38  # the divisor of groups that are all zeros


def quantize(chunks: Iterable[Tensor], rows: int, scheme: CodebookScheme) -> CodebookTensor:
    """Round a weight [rows, columns], given in chunks of rows, to nearest; columns are a multiple of 64.

    As in bitsandbytes, codes are chosen for the exact scales, and the scales are rounded to 8 bits afterwards.
    """
    return double_quantize(round_to_nearest(chunks, rows, scheme))


def round_to_nearest(chunks: Iterable[Tensor], rows: int, scheme: CodebookScheme) -> CodebookTensor:
    """Round a weight [rows, columns], given in chunks of rows, to nearest, with scales that are exact in float32."""
    return concat_rows((_round_rows(chunk, scheme) for chunk in chunks), rows)


def double_quantize(weight: CodebookTensor) -> CodebookTensor:
    """Round the scales of a whole weight to 8 bits."""
    double_quant = quantize_scale(weight.scale)
    return CodebookTensor(weight.scheme, weight.codes, dequantize_scale(double_quant), double_quant)


def _round_rows(weight: Tensor, scheme: CodebookScheme) -> CodebookTensor:
    groups = weight.float().reshape(len(weight), -1, CODEBOOK_GROUP_SIZE)
    scale = groups.abs().amax(-1)
    normalized = (groups * (1 / scale.clamp(min=ABSMAX_EPSILON))[..., None]).flatten(1).clamp_(-1, 1)
    return CodebookTensor(scheme, _nearest(normalized, code_values(scheme.name)), scale)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the level nearest to every value: uint8."""
    ascending, order = levels.sort(stable=True)
    indices = torch.bucketize(values, (ascending[1:] + ascending[:-1]) / 2, out_int32=True)
    return order.to(torch.uint8)[indices]


@cache
def code_values(name: str) -> Tensor:
    """Return the value of every code at a scale of 1: float32 [16]."""
    return torch.tensor(CODE_VALUES[name])


@cache
def dynamic_map() -> Tensor:
    """Return the dynamic map, float32 [256] ascending: 0, 1, and seven decades of both signs, finer in larger ones."""
    values = [0.0, 1.0]
    for decade in range(7):
        ends = torch.linspace(0.1, 1, 2**decade + 1)
        middles = 10.0 ** (decade - 6) * ((ends[:-1] + ends[1:]) / 2)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


def quantize_scale(scale: Tensor) -> DoubleQuantScale:
    """Quantize scales, float32 [rows, groups], to 8 bits."""
    offset = torch.tensor(scale.numpy().mean(dtype="float64"), dtype=torch.float32)
    centered = (scale - offset).flatten()
    padding = -len(centered) % SCALE_BLOCK_SIZE
    blocks = torch.nn.functional.pad(centered, (0, padding)).reshape(-1, SCALE_BLOCK_SIZE)
    absmax = blocks.abs().amax(-1)
    normalized = (blocks * (1 / absmax.clamp(min=ABSMAX_EPSILON))[:, None]).flatten()[: len(centered)]
    return DoubleQuantScale(_nearest(normalized, dynamic_map()).reshape(scale.shape), absmax, float(offset))


def dequantize_scale(stored: DoubleQuantScale) -> Tensor:
    """Return the scales: float32 [rows, groups]."""
    normalized = dynamic_map()[stored.codes.flatten().int()]
    absmax = stored.absmax.repeat_interleave(SCALE_BLOCK_SIZE)[: len(normalized)]
    return (normalized * absmax + stored.offset).reshape(stored.codes.shape)


def dequantize(weight: CodebookTensor) -> Tensor:
    """Return the values: float32 [rows, columns]."""
    values = code_values(weight.scheme.name).to(weight.codes.device)[weight.codes.int()]
    return values * weight.scale.repeat_interleave(CODEBOOK_GROUP_SIZE, 1)
