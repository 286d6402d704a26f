"""Quantize one block with every candidate of its recipe and keep the one of least loss on held-out samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from torch import Tensor

from mcpmq.calibrate.exchange import ONE_PROCESS, Exchange, broadcast
from mcpmq.calibrate.selection import BlockLoss, Candidate
from mcpmq.errors import prefix_errors
from mcpmq.execution.chunked_matmul import ParallelMap
from mcpmq.execution.torch_model import StoredWeight
from mcpmq.grids.activation import check_range
from mcpmq.plan import Plan, TensorPlan
from mcpmq.quantized_model import CalibrationResult
from mcpmq.rounding.block import Records, deviation_records
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
from mcpmq.system.torch_threads import torch_threads

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
class InputSummary:
    """Facts about the inputs of a matrix, for its record and for the losses.

    token_counts: of its part with the fewest tokens. ranges: of every equal share of its rows.
    """

    token_counts: dict[str, int]
    abs_max: float
    ranges: list[tuple[float, float]]

    @classmethod
    def of_parts(cls, parts: tuple[InputStats, ...]) -> Self:
        """Return the summary of the statistics of a matrix."""
        fewest = min(parts, key=lambda part: part.total_weight)
        abs_max = max(float(part.abs_max.max()) for part in parts)
        ranges = [(float(part.minimum.min()), float(part.maximum.max())) for part in parts]
        return cls(dict(fewest.token_counts), abs_max, ranges)


@dataclass(frozen=True, slots=True)
class RoundedBlock:
    """The weights of a block, and summaries of the inputs of its calibrated matrices, by common name."""

    weights: dict[str, RoundedWeight]
    inputs: dict[str, InputSummary]


class Rounder(Protocol):
    """Rounds the weights of a block."""

    def round(self, candidate: Candidate, scaling: Mapping[str, WeightScaling], is_last: bool) -> RoundedBlock:
        """Round with a candidate, after scales are applied; after the last one, memory for others may be freed."""


@dataclass(slots=True)
class StatsRounder:
    """Rounds a block with statistics of its inputs from one pass of the samples through its original weights."""

    plan: Plan
    block: str
    stats: BlockStats  # of folded weights; changed in place and emptied by the last candidate: Hessians are large
    scales: Sequence[SmoothingScales]
    threads: int  # for rounding
    loaded: Mapping[str, Tensor]  # original weights on a device other than the CPU, float32 [out, in]
    exchange: Exchange = ONE_PROCESS
    has_scaled_stats: bool = False

    def round(self, candidate: Candidate, scaling: Mapping[str, WeightScaling], is_last: bool) -> RoundedBlock:
        """Round with a candidate, in process 0; candidates with smoothing come last."""
        return broadcast(self.exchange, lambda: self._round(candidate, scaling, is_last))

    def _round(self, candidate: Candidate, scaling: Mapping[str, WeightScaling], is_last: bool) -> RoundedBlock:
        if candidate.smoothing and not self.has_scaled_stats:
            self.stats.update(scale_stats(self.stats, self.scales))
            self.has_scaled_stats = True
        inputs = {name: InputSummary.of_parts(parts) for name, parts in self.stats.items()}
        loaded = {name: weight for name, weight in self.loaded.items() if name in inputs}
        take = take_last if is_last else _keep
        with torch_threads(self.threads):
            weights = {
                tensor.name: quantize_weight(
                    *(self.plan, tensor, take(self.stats, tensor.name), candidate.method),
                    *(scaling.get(tensor.name, NO_SCALING), loaded.get(tensor.name)),
                )
                for tensor in self.plan.blocks[self.block]
            }
        return RoundedBlock(weights, inputs)


def take_last(stats: BlockStats, name: str) -> tuple[InputStats, ...]:
    """Remove the statistics of a weight for their last use; a Hessian that no other weight has is overwritten."""
    parts = stats.pop(name, ())
    uses = Counter(id(part.gram) for parts in (parts, *stats.values()) for part in parts)
    return tuple(replace(part, overwrite=uses[id(part.gram)] == 1) for part in parts)


def _keep(stats: BlockStats, name: str) -> tuple[InputStats, ...]:
    return stats.get(name, ())


@dataclass(frozen=True, slots=True)
class BlockQuantizer:
    """Quantizes one block with every candidate."""

    plan: Plan
    block: str
    rounder: Rounder
    scales: Sequence[SmoothingScales] = ()
    folds: Sequence[SmoothingScales] = ()

    def quantize(
        self, candidates: tuple[Candidate, ...], loss: BlockLoss | None
    ) -> tuple[dict[str, StoredWeight], CalibrationResult]:
        """Return the weights of the candidate with the least loss, the first of equals, and the results of all.

        Without a loss there is one candidate, and no error in the result.
        """
        errors: dict[str, float] = {}
        for candidate in candidates:
            scaling = weight_scalings([*self.folds, *(self.scales if candidate.smoothing else ())])
            rounded = self.rounder.round(candidate, scaling, is_last=candidate == candidates[-1])
            self._check_ranges(rounded)
            weights = {name: weight.stored for name, weight in rounded.weights.items()}
            error = loss(weights, self._input_abs_max(rounded)) if loss else 0.0
            if not errors or error < min(errors.values()):
                best, best_rounded, best_weights = candidate, rounded, weights
            errors[str(candidate)] = error
        digits = {name: float(f"{error:.4g}") for name, error in errors.items()} if loss else {}
        return best_weights, CalibrationResult(self._records(best, best_rounded), digits)

    def _input_abs_max(self, rounded: RoundedBlock) -> dict[str, float]:
        """Return the largest input magnitude of every matrix if the recipe smooths for 8-bit inputs."""
        if self.plan.recipe.smooth != "smoothquant":
            return {}
        return {name: inputs.abs_max for name, inputs in rounded.inputs.items()}

    def _check_ranges(self, rounded: RoundedBlock) -> None:
        for tensor in self.plan.blocks[self.block]:
            for observed in rounded.inputs[tensor.name].ranges if tensor.has_input_range else ():
                check_range(tensor.name, observed)

    def _records(self, best: Candidate, rounded: RoundedBlock) -> Records:
        """Return the fields of the records of all weights of the best candidate."""
        records: Records = {}
        for name, inputs in rounded.inputs.items():
            weight = rounded.weights[name]
            records[name] = {"calibration_tokens": inputs.token_counts, "method": weight.method}
            if any(weight.shrinkage):
                records[name]["shrinkage"] = weight.shrinkage
        for tensor in self.plan.blocks[self.block]:
            if tensor.has_input_range:
                records[tensor.name]["input_ranges"] = rounded.inputs[tensor.name].ranges
        for scales in self.scales if best.smoothing else ():
            for name in filter(records.__contains__, scales.mapping.balance_layers):
                records[name]["smoothing_exponent"] = scales.exponent
        deviations = {name: weight.deviations for name, weight in rounded.weights.items()}
        for name, fields in deviation_records(deviations, self.folds).items():
            records.setdefault(name, {}).update(fields)
        return records
