"""One weight of a plan, read from the checkpoint and rounded, converted or kept as its step says."""

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from mcpmq.errors import CheckpointError
from mcpmq.grids import codebook
from mcpmq.observe import LayerStats
from mcpmq.plan import Plan, Step
from mcpmq.qtensor import QTensor
from mcpmq.recipe import CodebookScheme, FloatScheme, GgmlScheme, IntegerScheme
from mcpmq.rounding import ROUNDERS

PIECE_WEIGHTS = 1 << 24  # read at a time; rows are rounded independently
SEEING_PIECE_WEIGHTS = 1 << 27  # larger, for every piece factors the statistics anew


def rounded(plan: Plan, step: Step, stats: Sequence[LayerStats] = ()) -> QTensor | Tensor:
    """A weight [out, in]. With `stats` it is rounded by them as the recipe says, one of them for all rows or several
    for equal shares of the rows; without, to nearest.

    Raises:
        CheckpointError: a value is not finite, or too large for f16.
    """
    if step.scheme is None or isinstance(step.scheme, FloatScheme):
        weight = _finite(plan.checkpoint.load(step.spec), step)
        return weight if step.scheme is None else _converted(weight, step, step.scheme)
    if isinstance(step.scheme, CodebookScheme):
        rows = (_finite(rows, step) for rows in plan.checkpoint.load_rows(step.spec, PIECE_WEIGHTS))
        return codebook.quantize(rows, step.matrix_shape[0], step.scheme)
    if stats:
        return _rounded_by_sight(plan, step, step.scheme, stats)
    scheme, pieces = step.scheme, plan.checkpoint.load_rows(step.spec, PIECE_WEIGHTS)
    nearest = (ROUNDERS["rtn"](_finite(rows, step), scheme, None) for rows in pieces)
    return QTensor.stacked(nearest, step.matrix_shape[0])


def _rounded_by_sight(
    plan: Plan, step: Step, scheme: IntegerScheme | GgmlScheme, stats: Sequence[LayerStats]
) -> QTensor:
    if len(stats) == 1:
        parts = zip(plan.checkpoint.load_rows(step.spec, SEEING_PIECE_WEIGHTS), repeat(stats[0]), strict=False)
    else:
        parts = zip(plan.checkpoint.load(step.spec).chunk(len(stats)), stats, strict=True)
    rounder = ROUNDERS[plan.recipe.round]
    pieces = (rounder(_finite(rows, step), scheme, seen) for rows, seen in parts)
    return QTensor.stacked(pieces, step.matrix_shape[0])


def _finite(weight: Tensor, step: Step) -> Tensor:
    if not weight.isfinite().all():
        raise CheckpointError(f"`{step.spec.hub_name}` holds values that are not finite", "fetch the checkpoint again")
    return weight


def _converted(weight: Tensor, step: Step, scheme: FloatScheme) -> Tensor:
    converted = weight.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[scheme.dtype])
    if not converted.isfinite().all():
        raise CheckpointError(f"`{step.name}` has values too large for f16", 'write `"bf16"` for it in the recipe')
    return converted
