"""One weight of a plan, read from the checkpoint and rounded, converted or kept as its step says."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from mcpmq.errors import CheckpointError
from mcpmq.grids import codebook
from mcpmq.plan import Plan, Step
from mcpmq.qtensor import QTensor
from mcpmq.rounding import ROUNDERS, RounderName
from mcpmq.rounding.smoothing import Scaling
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import CodebookScheme, FloatScheme

UNSCALED = Scaling()
PIECE_WEIGHTS = 1 << 24  # read at a time; rows are rounded independently
SEEING_PIECE_WEIGHTS = 1 << 27  # larger, for every piece factors the statistics anew


def rounded(
    plan: Plan,
    step: Step,
    stats: Sequence[LayerStats] = (),
    method: RounderName = "rtn",
    scaling: Scaling = UNSCALED,
) -> QTensor | Tensor:
    """A weight [out, in], scaled where scales have moved. On a grid it is rounded by a method to which `stats` say what
    it sees: one of them for all rows or several for equal shares of the rows. Without any it is rounded to nearest.

    Raises:
        CheckpointError: a value is not finite, or too large for f16.
    """
    if step.scheme is None or isinstance(step.scheme, FloatScheme):
        weight = scaling.applied(_finite(plan.checkpoint.load(step.spec), step))
        return weight if step.scheme is None else _converted(weight, step, step.scheme)
    if isinstance(step.scheme, CodebookScheme):
        return codebook.quantize(
            _scaled(_shares(plan, step, 0, "rtn"), step, scaling), step.matrix_shape[0], step.scheme
        )
    rounder = ROUNDERS[method if stats else "rtn"]
    shares = _scaled(_shares(plan, step, len(stats), method), step, scaling)
    parts = zip(shares, stats if len(stats) > 1 else repeat(stats[0] if stats else None), strict=False)
    return QTensor.stacked((rounder(rows, step.scheme, seen) for rows, seen in parts), step.matrix_shape[0])


def _shares(plan: Plan, step: Step, stats: int, method: RounderName) -> Iterable[Tensor]:
    if stats > 1:
        return plan.checkpoint.load(step.spec).chunk(stats)
    seeing = stats and method == "gptq"
    return plan.checkpoint.load_rows(step.spec, SEEING_PIECE_WEIGHTS if seeing else PIECE_WEIGHTS)


def _scaled(shares: Iterable[Tensor], step: Step, scaling: Scaling) -> Iterator[Tensor]:
    first_row = 0
    for rows in shares:
        yield scaling.applied(_finite(rows, step), first_row)
        first_row += len(rows)


def _finite(weight: Tensor, step: Step) -> Tensor:
    # In pieces: the check takes several times the memory of what is checked.
    if not all(piece.isfinite().all() for piece in torch.split(weight.flatten(), PIECE_WEIGHTS)):
        raise CheckpointError(f"`{step.spec.hub_name}` holds values that are not finite", "fetch the checkpoint again")
    return weight


def _converted(weight: Tensor, step: Step, scheme: FloatScheme) -> Tensor:
    converted = weight.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[scheme.dtype])
    if not converted.isfinite().all():
        raise CheckpointError(f"`{step.name}` has values too large for f16", 'write `"bf16"` for it in the recipe')
    return converted
