"""One block rounded in every way that its recipe allows; the way that held-out samples prefer is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcpmq.calibrate.selection import Candidate, Judge
from mcpmq.execution.chunked_matmul import Each, torch_threads
from mcpmq.execution.torch_model import Stored
from mcpmq.plan import Plan, Step
from mcpmq.quantized_model import Findings
from mcpmq.rounding import RounderName
from mcpmq.rounding.smoothing import (
    Channels,
    Reader,
    Scales,
    Scaling,
    scaled_stats,
    scalings,
    search,
)
from mcpmq.rounding.stats import LayerStats
from mcpmq.rounding.weight import UNSCALED, rounded
from mcpmq.scheme import GgmlScheme, IntegerScheme

Stats = dict[str, tuple[LayerStats, ...]]
"""What the matrices of a block see, by common name."""


def scales_of(plan: Plan, block: str, weights: Mapping[str, Tensor], stats: Stats, each: Each) -> list[Scales]:
    """The scales that lessen the errors of a block, of which `weights` are the original ones [out, in], float32."""
    steps, found = {step.name: step for step in plan.blocks[block]}, []
    for fold in plan.folds.get(block, ()):
        readers = [_reader(steps[name], weights[name], stats[name]) for name in fold.into if steps[name].on_a_grid]
        count = len(weights[fold.source]) // fold.part[1]
        channels = Channels(count, plan.checkpoint.architecture.language.head_width)  # no other heads share channels
        assert plan.recipe.smooth != "none"
        scales = search(fold, plan.recipe.smooth, readers, channels, plan.recipe.round != "rtn", each)
        if scales:
            found.append(scales)
    return found


def _reader(step: Step, weight: Tensor, stats: tuple[LayerStats, ...]) -> Reader:
    assert isinstance(step.scheme, IntegerScheme | GgmlScheme)
    [seen] = stats
    return Reader(weight, step.scheme, seen)


@dataclass(frozen=True, slots=True)
class Trial:
    """A block, what it was seen to take in, and the scales that could move inside of it."""

    plan: Plan
    block: str
    stats: Stats  # changed and emptied by rounding: Gram matrices are large
    scales: list[Scales]
    threads: int  # of the rounder

    def best(self, tries: tuple[Candidate, ...], judge: Judge | None) -> tuple[dict[str, Stored], Findings]:
        """The weights rounded in the way that is judged best, of equally good ones the first, and what was found."""
        told: dict[str, dict[str, Any]] = {name: {"tokens": _fewest(parts)} for name, parts in self.stats.items()}
        scaling: Mapping[str, Scaling] = {}
        errors: dict[str, float] = {}
        for candidate in tries:
            if candidate.smoothing and not scaling:
                self.stats.update(scaled_stats(self.stats, self.scales))
                scaling = scalings(self.scales)
            reaches, ranges = self._reaches(), self._input_ranges()
            weights = self._rounded(candidate.rounder, scaling, last=candidate == tries[-1])
            error = judge(weights, reaches) if judge else 0.0
            if not errors or error < min(errors.values()):
                chosen, kept, chosen_ranges = candidate, weights, ranges
            errors[str(candidate)] = error
        self._tell(told, chosen, chosen_ranges)
        return kept, Findings(told, {name: float(f"{error:.4g}") for name, error in errors.items()} if judge else {})

    def _rounded(self, rounder: RounderName, scaling: Mapping[str, Scaling], last: bool) -> dict[str, Stored]:
        take = self.stats.pop if last else self.stats.get  # what no other way needs makes room
        with torch_threads(self.threads):
            return {
                step.name: rounded(self.plan, step, take(step.name, ()), rounder, scaling.get(step.name, UNSCALED))
                for step in self.plan.blocks[self.block]
            }

    def _reaches(self) -> dict[str, float]:
        """The largest inputs by common name, where inputs are to be rounded to 8 bits."""
        if self.plan.recipe.smooth != "smoothquant":
            return {}
        return {name: max(float(part.largest.max()) for part in parts) for name, parts in self.stats.items()}

    def _input_ranges(self) -> dict[str, list[tuple[float, float]]]:
        """The lowest and the highest input by common name, for each share of the rows, where inputs are rounded."""
        rounding = [step.name for step in self.plan.blocks[self.block] if step.activation]
        return {
            name: [(float(part.lowest.min()), float(part.highest.max())) for part in self.stats[name]]
            for name in rounding
        }

    def _tell(
        self, told: dict[str, dict[str, Any]], chosen: Candidate, ranges: Mapping[str, list[tuple[float, float]]]
    ) -> None:
        for fields in told.values():
            fields["round"] = chosen.rounder
        for name, found in ranges.items():
            told[name]["input_ranges"] = found
        for scales in self.scales if chosen.smoothing else ():
            for name in scales.fold.into:
                if name in told:
                    told[name]["smooth"] = scales.exponent


def _fewest(parts: tuple[LayerStats, ...]) -> dict[str, int]:
    return dict(min(parts, key=lambda part: part.weight).tokens)
