"""Quantize one block with every candidate of its recipe and keep the one of least loss on held-out samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcpmq.calibrate.selection import BlockLoss, Candidate
from mcpmq.errors import prefix_errors
from mcpmq.execution.chunked_matmul import ParallelMap, torch_threads
from mcpmq.execution.torch_model import StoredWeight
from mcpmq.grids.activation import check_range
from mcpmq.plan import Plan, TensorPlan
from mcpmq.quantized_model import CalibrationResult
from mcpmq.rounding import RoundingMethod
from mcpmq.rounding.block import deviation_records
from mcpmq.rounding.smoothing import (
    BalanceLayer,
    Channels,
    SmoothingScales,
    WeightScaling,
    scale_stats,
    search_scales,
    weight_scalings,
)
from mcpmq.rounding.stats import InputStats
from mcpmq.rounding.weight import NO_SCALING, RoundedWeight, quantize_weight
from mcpmq.scheme import GgmlScheme, IntegerScheme

BlockStats = dict[str, tuple[InputStats, ...]]
"""Input statistics of the matrices of a block, by common name."""


def smoothing_scales(
    plan: Plan, block: str, weights: Mapping[str, Tensor], stats: BlockStats, parallel_map: ParallelMap
) -> list[SmoothingScales]:
    """Return the smoothing scales that lower the error of a block.

    `weights` are by common name, float32 [out, in].
    """
    tensors, found = {tensor.name: tensor for tensor in plan.blocks[block]}, []
    for mapping in plan.smoothing_mappings.get(block, ()):
        layers = [
            _balance_layer(tensors[name], weights[name], stats[name])
            for name in mapping.balance_layers
            if tensors[name].is_quantized
        ]
        rows = len(weights[mapping.smooth_layer])
        channels = Channels.of_mapping(mapping, rows, plan.checkpoint.architecture.language.head_dim)
        assert plan.recipe.smooth != "none"
        weighted = plan.recipe.method != "rtn"
        with prefix_errors(", ".join(f"`{name}`" for name in mapping.balance_layers)):
            scales = search_scales(mapping, plan.recipe.smooth, layers, channels, weighted, parallel_map)
        if scales:
            found.append(scales)
    return found


def _balance_layer(tensor: TensorPlan, weight: Tensor, stats: tuple[InputStats, ...]) -> BalanceLayer:
    assert isinstance(tensor.scheme, IntegerScheme | GgmlScheme)
    [only] = stats
    return BalanceLayer(weight, tensor.scheme, only)


@dataclass(frozen=True, slots=True)
class BlockQuantizer:
    """Quantizes one block from the statistics of its inputs and its smoothing scales."""

    plan: Plan
    block: str
    stats: BlockStats  # of folded weights; changed in place and emptied during quantization: Hessians are large
    scales: list[SmoothingScales]
    threads: int  # for rounding
    folds: Sequence[SmoothingScales] = ()

    def quantize(
        self, candidates: tuple[Candidate, ...], loss: BlockLoss | None
    ) -> tuple[dict[str, StoredWeight], CalibrationResult]:
        """Return the weights of the candidate with the least loss, the first of equals, and the results of all.

        Candidates with smoothing come last. Without a loss there is one candidate, and no error in the result.
        """
        records: dict[str, dict[str, Any]] = {
            name: {"calibration_tokens": _fewest_tokens(parts)} for name, parts in self.stats.items()
        }
        scaling, smoothed = weight_scalings(self.folds), False
        errors: dict[str, float] = {}
        for candidate in candidates:
            if candidate.smoothing and not smoothed:
                self.stats.update(scale_stats(self.stats, self.scales))
                scaling, smoothed = weight_scalings([*self.folds, *self.scales]), True
            input_abs_max, input_ranges = self._input_abs_max(), self._input_ranges()
            rounded = self._quantize_weights(candidate.method, scaling, last=candidate == candidates[-1])
            weights = {name: weight.stored for name, weight in rounded.items()}
            error = loss(weights, input_abs_max) if loss else 0.0
            if not errors or error < min(errors.values()):
                best, best_rounded, best_weights, best_ranges = candidate, rounded, weights, input_ranges
            errors[str(candidate)] = error
        self._record(records, best, best_rounded, best_ranges)
        digits = {name: float(f"{error:.4g}") for name, error in errors.items()} if loss else {}
        return best_weights, CalibrationResult(records, digits)

    def _quantize_weights(
        self, method: RoundingMethod, scaling: Mapping[str, WeightScaling], last: bool
    ) -> dict[str, RoundedWeight]:
        take = self.stats.pop if last else self.stats.get  # the last candidate frees the Hessians
        with torch_threads(self.threads):
            return {
                tensor.name: quantize_weight(
                    self.plan, tensor, take(tensor.name, ()), method, scaling.get(tensor.name, NO_SCALING)
                )
                for tensor in self.plan.blocks[self.block]
            }

    def _input_abs_max(self) -> dict[str, float]:
        """Return the largest input magnitude of every matrix if the recipe smooths for 8-bit inputs."""
        if self.plan.recipe.smooth != "smoothquant":
            return {}
        return {name: max(float(part.abs_max.max()) for part in parts) for name, parts in self.stats.items()}

    def _input_ranges(self) -> dict[str, list[tuple[float, float]]]:
        """Return the input ranges of every matrix with quantized activations, one for each equal share of its rows."""
        ranges = {
            tensor.name: [(float(part.minimum.min()), float(part.maximum.max())) for part in self.stats[tensor.name]]
            for tensor in self.plan.blocks[self.block]
            if tensor.activation
        }
        for name, observed in ranges.items():
            for one in observed:
                check_range(name, one)
        return ranges

    def _record(
        self,
        records: dict[str, dict[str, Any]],
        best: Candidate,
        weights: Mapping[str, RoundedWeight],
        input_ranges: Mapping[str, list[tuple[float, float]]],
    ) -> None:
        for name, fields in records.items():
            fields["method"] = weights[name].method
            if any(weights[name].shrinkage):
                fields["shrinkage"] = weights[name].shrinkage
        for name, ranges in input_ranges.items():
            records[name]["input_ranges"] = ranges
        for scales in self.scales if best.smoothing else ():
            for name in scales.mapping.balance_layers:
                if name in records:
                    records[name]["smoothing_exponent"] = scales.exponent
        deviations = {name: weight.deviations for name, weight in weights.items()}
        for name, fields in deviation_records(deviations, self.folds).items():
            records.setdefault(name, {}).update(fields)


def _fewest_tokens(parts: tuple[InputStats, ...]) -> dict[str, int]:
    return dict(min(parts, key=lambda part: part.total_weight).token_counts)
