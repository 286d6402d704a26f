"""Quantize, convert or keep one weight of a plan, read from the checkpoint in chunks of rows."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from mcpmq.errors import CheckpointError
from mcpmq.grids import codebook
from mcpmq.plan import Plan, TensorPlan
from mcpmq.qtensor import QTensor, concat_rows
from mcpmq.rounding import ROUNDING_FUNCTIONS, RoundingMethod
from mcpmq.rounding.smoothing import WeightScaling
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import CodebookScheme, FloatScheme, GridScheme

NO_SCALING = WeightScaling()
CHUNK_WEIGHTS = 1 << 24  # read at a time; rows are quantized independently
GPTQ_CHUNK_WEIGHTS = 1 << 27  # larger, because the Hessian is factored again for every chunk
FLOAT_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def quantize_weight(
    plan: Plan,
    tensor: TensorPlan,
    stats: Sequence[InputStats] = (),
    method: RoundingMethod = "rtn",
    scaling: WeightScaling = NO_SCALING,
) -> QTensor | Tensor:
    """Quantize, convert or keep a weight [out, in] as planned, after smoothing scales are applied.

    `stats` are the input statistics for the rounding method: one for all rows, or several for equal parts of the rows.
    Without statistics the weight is rounded to nearest.

    Raises:
        CheckpointError: a value is not finite, or too large for f16.
    """
    match tensor.scheme:
        case None:
            return scaling.apply(_check_finite(plan.checkpoint.load(tensor.spec), tensor))
        case FloatScheme() as scheme:
            return _convert(scaling.apply(_check_finite(plan.checkpoint.load(tensor.spec), tensor)), tensor, scheme)
        case CodebookScheme() as scheme:
            chunks = plan.checkpoint.load_rows(tensor.spec, CHUNK_WEIGHTS)
            return codebook.quantize(_scale_chunks(chunks, tensor, scaling), tensor.matrix_shape[0], scheme)
        case scheme:
            return _quantize_on_grid(plan, tensor, scheme, stats, method if stats else "rtn", scaling)


def _quantize_on_grid(
    plan: Plan,
    tensor: TensorPlan,
    scheme: GridScheme,
    stats: Sequence[InputStats],
    method: RoundingMethod,
    scaling: WeightScaling,
) -> QTensor:
    quantize = ROUNDING_FUNCTIONS[method]
    chunks = _scale_chunks(_load_chunks(plan, tensor, len(stats), method), tensor, scaling)
    chunk_stats = stats if len(stats) > 1 else repeat(stats[0] if stats else None)
    parts = (quantize(rows, scheme, inputs) for rows, inputs in zip(chunks, chunk_stats, strict=False))
    return concat_rows(parts, tensor.matrix_shape[0])


def _load_chunks(plan: Plan, tensor: TensorPlan, stats: int, method: RoundingMethod) -> Iterable[Tensor]:
    if stats > 1:
        return plan.checkpoint.load(tensor.spec).chunk(stats)
    return plan.checkpoint.load_rows(tensor.spec, GPTQ_CHUNK_WEIGHTS if method == "gptq" else CHUNK_WEIGHTS)


def _scale_chunks(chunks: Iterable[Tensor], tensor: TensorPlan, scaling: WeightScaling) -> Iterator[Tensor]:
    first_row = 0
    for rows in chunks:
        yield scaling.apply(_check_finite(rows, tensor), first_row)
        first_row += len(rows)


def _check_finite(weight: Tensor, tensor: TensorPlan) -> Tensor:
    # In chunks, because the check needs several times the memory of its input.
    if not all(chunk.isfinite().all() for chunk in torch.split(weight.flatten(), CHUNK_WEIGHTS)):
        raise CheckpointError(f"`{tensor.spec.hub_name}` has values that are not finite", "download it again")
    return weight


def _convert(weight: Tensor, tensor: TensorPlan, scheme: FloatScheme) -> Tensor:
    converted = weight.to(FLOAT_DTYPES[scheme.dtype])
    if not converted.isfinite().all():
        raise CheckpointError(f"`{tensor.name}` has values too large for f16", 'use `"bf16"` for it in the recipe')
    return converted
