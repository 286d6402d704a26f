"""Quantize one block without calibration, and record deviations from the plan and powers of two between its weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mcpmq.errors import ScaleError
from mcpmq.plan import Plan, TensorPlan
from mcpmq.qtensor import QTensor
from mcpmq.rounding.fold import find_folds, fold_mappings
from mcpmq.rounding.smoothing import SmoothingScales, WeightScaling, weight_scalings
from mcpmq.rounding.weight import NO_SCALING, RoundedWeight, quantize_weight

Records = dict[str, dict[str, Any]]
"""Fields of the records of weights, by common name."""


def quantize_to_nearest(plan: Plan, block: str) -> tuple[dict[str, QTensor | Tensor], Records]:
    """Round the weights of a block to nearest; return them and their deviations from the plan, by common name.

    If scales do not represent a weight, powers of two are folded into its neighbors and the block is rounded again.

    Raises:
        ScaleError: the scales of a scheme do not represent a weight.
    """
    failure: ScaleError | None = None
    try:
        rounded = _round(plan, plan.blocks[block], {})
    except ScaleError as error:
        failure = error
    folds = []
    if failure or any(weight.has_inexact_scales for weight in rounded.values()):
        folds = find_block_folds(plan, block)
    if folds:
        rounded = _round(plan, plan.blocks[block], weight_scalings(folds))
    elif failure:
        raise failure
    records = deviation_records({name: weight.deviations for name, weight in rounded.items()}, folds)
    return {name: weight.stored for name, weight in rounded.items()}, records


def find_block_folds(plan: Plan, block: str) -> list[SmoothingScales]:
    """Return the powers of two that scales of a block require; empty if they require none, or if none are enough."""
    return find_folds(plan, block, _load_mapped(plan, block))


def _round(plan: Plan, tensors: Sequence[TensorPlan], scaling: Mapping[str, WeightScaling]) -> dict[str, RoundedWeight]:
    return {
        tensor.name: quantize_weight(plan, tensor, scaling=scaling.get(tensor.name, NO_SCALING)) for tensor in tensors
    }


def _load_mapped(plan: Plan, block: str) -> dict[str, Tensor]:
    """Load the weights of all mappings of a block, with the biases of their smooth layers."""
    names = set()
    for mapping in fold_mappings(plan, block):
        names |= {mapping.smooth_layer, f"{mapping.smooth_layer}.bias", *mapping.balance_layers}
    return {tensor.name: plan.checkpoint.load(tensor.spec) for tensor in plan.blocks[block] if tensor.name in names}


def deviation_records(deviations: Mapping[str, Sequence[str]], folds: Sequence[SmoothingScales]) -> Records:
    """Return the fields of all weights with deviations or powers of two."""
    records: Records = {name: {} for name in deviations}
    texts = {name: list(given) for name, given in deviations.items()}
    for name, scaling in weight_scalings(folds).items():
        if name not in records:  # a layer without bias
            continue
        if scaling.row_scale is not None:
            records[name]["row_exponents"] = _count_exponents(1 / scaling.row_scale)
        if scaling.column_scale is not None:
            records[name]["column_exponents"] = _count_exponents(scaling.column_scale)
        texts[name].append(f"scaled by powers of two with {_partners(name, folds)}, so that scales are exact")
    for name, fields in records.items():
        if texts[name]:
            fields["deviation"] = "; ".join(texts[name])
    return {name: fields for name, fields in records.items() if fields}


def _partners(name: str, folds: Sequence[SmoothingScales]) -> str:
    """Return the weights that take the reciprocal of the powers of two of a weight."""
    partners: dict[str, None] = {}
    for mapping in (one.mapping for one in folds):
        if name in mapping.balance_layers:
            partners[mapping.smooth_layer] = None
        if name.removesuffix(".bias") == mapping.smooth_layer:
            partners |= dict.fromkeys(mapping.balance_layers)
    return ", ".join(f"`{partner}`" for partner in partners)


def _count_exponents(scale: Tensor) -> dict[int, int]:
    """Return the number of channels by exponent of two."""
    return dict(sorted(Counter(int(exponent) for exponent in scale.log2().round().tolist()).items()))
