"""Experts by their calibration tokens: those without any are rounded to nearest, and the others are counted."""

from collections.abc import Sequence
from statistics import median

from mcpmq.artifact import WeightRecord
from mcpmq.checkpoint.expert_record import ExpertRecord
from mcpmq.execution.torch_model import StoredWeight
from mcpmq.families.blocks import block_name, is_expert
from mcpmq.plan import Plan
from mcpmq.quantized_model import CalibrationResult
from mcpmq.rounding.block import quantize_to_nearest
from mcpmq.rounding.stats import MODALITIES

NO_TOKENS = "rounded to nearest: no calibration token is routed to the expert"


def round_without_tokens(plan: Plan, block: str) -> tuple[dict[str, StoredWeight], CalibrationResult]:
    """Round the weights of an expert to nearest, and record the reason."""
    weights, records = quantize_to_nearest(plan, block)
    for tensor in plan.blocks[block]:
        if tensor.is_quantized:
            found = records.setdefault(tensor.name, {})
            deviation = "; ".join(filter(None, (NO_TOKENS, found.get("deviation"))))
            found |= {"calibration_tokens": dict.fromkeys(MODALITIES, 0), "method": "rtn", "deviation": deviation}
    return weights, CalibrationResult(records)


def expert_record(weights: Sequence[WeightRecord]) -> ExpertRecord | None:
    """Count the calibrated experts of a model; None if it has none."""
    experts: dict[str, list[WeightRecord]] = {}
    for one in weights:
        if one.calibration_tokens is not None and is_expert(one.name):
            experts.setdefault(block_name(one.name), []).append(one)
    tokens = [min(map(_tokens, matrices)) for matrices in experts.values()]
    if not tokens:
        return None
    few = [any(0 < _tokens(one) < one.shape[1] for one in matrices) for matrices in experts.values()]
    return ExpertRecord(
        count=len(experts),
        without_tokens=tokens.count(0),
        with_few_tokens=sum(few),
        rounded_to_nearest=sum(all(one.method == "rtn" for one in matrices) for matrices in experts.values()),
        min_tokens=min(tokens),
        median_tokens=median(tokens),
    )


def _tokens(weight: WeightRecord) -> int:
    return sum((weight.calibration_tokens or {}).values())
