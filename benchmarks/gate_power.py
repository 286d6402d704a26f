"""Measure the power of the committed gate: its alarm rate on small regressions and on rebuilds without a regression.

    python -m benchmarks.gate_power [--builds 100]      15 minutes on an idle core; an interrupted run resumes

The language model of the reference checkpoint is quantized with different halves of the calibration set (rebuilds). A
regression is the baseline build with noise in proportion to every matrix, scaled for a mean rise of perplexity by 0.1
to 1 %. All builds are measured on the held-out set in PyTorch, with the image features of the original. Alarms are
counted for the whole held-out set and for random subsets.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.commands import ROOT, WORK, provenance, write_result
from benchmarks.language_bench import LanguageModelBench, Stats, TokenLosses, Weights
from mcpmq.gate import Gate
from mcpmq.plan import TensorPlan

RECIPE = "calibrated-quality-int4"
CALIBRATION_PARTS, PARTS_PER_BUILD = 20, 10
TARGET_INCREASES = (0.001, 0.002, 0.003, 0.005, 0.01)  # mean rises of perplexity
MAIN_INCREASE = 0.003  # the others get an eighth of the builds
SAMPLE_COUNTS = (38, 76, 152, 304)
SUBSETS_PER_COUNT = 10
PERPLEXITY_BOUND = 0.0015  # a bound on perplexity that catches half of the rises by 0.3 %
PROBE_SCALE, PROBE_DRAWS = 0.02, 6  # the scale of an increase follows from these: the rise grows with its square


def add_noise(weights: Weights, scale: float, seed: int) -> dict[TensorPlan, Tensor]:
    """Add normal noise of `scale` times the root mean square of each matrix."""
    random = torch.Generator().manual_seed(seed)
    return {
        tensor: weight + scale * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=random)
        for tensor, weight in weights.items()
    }


class BuildCache:
    """Losses of every build, written to disk as they are measured, so that an interrupted run resumes."""

    def __init__(self, bench: LanguageModelBench) -> None:
        self.bench, self.folder = bench, WORK / "gate-power" / RECIPE
        self.folder.mkdir(parents=True, exist_ok=True)
        self.held_out = bench.encode_samples("heldout")

    @cached_property
    def original(self) -> tuple[Tensor, list[Stats]]:
        """Log-probabilities and statistics of the original, measured before the first build replaces its weights."""
        statistics = self.bench.collect_statistics(self.bench.encode_samples("starter"), CALIBRATION_PARTS)
        return self.bench.answer_logprobs(self.held_out), statistics

    def rebuild(self, seed: int) -> TokenLosses:
        """Return the losses of a build with half of the calibration set; seed 0 is the baseline."""
        return self._cached(f"rebuild-{seed}", lambda: self.weights(seed))

    def regressed(self, scale: float, seed: int) -> TokenLosses:
        """Return the losses of the baseline with noise."""
        return self._cached(f"noise-{scale:.6f}-{seed}", lambda: add_noise(self.weights(0), scale, seed))

    def weights(self, seed: int) -> dict[TensorPlan, Tensor]:
        """Return the matrices of a rebuild."""
        parts = np.random.default_rng(seed).choice(CALIBRATION_PARTS, PARTS_PER_BUILD, replace=False)
        _, statistics = self.original
        return self.bench.requantize([statistics[part] for part in parts])

    def noise_scale(self, increase: float) -> float:
        """Return the scale of noise for a mean rise of perplexity by `increase`."""
        before = self.rebuild(0).losses.mean()
        rises = [self.regressed(PROBE_SCALE, seed).losses.mean() - before for seed in range(PROBE_DRAWS)]
        return float(PROBE_SCALE * math.sqrt(math.log1p(increase) / np.mean(rises)))

    def _cached(self, name: str, weights: Callable[[], Mapping[TensorPlan, Tensor]]) -> TokenLosses:
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            logprobs, _ = self.original
            self.bench.set_weights(weights())
            np.savez(file, **asdict(self.bench.measure(self.held_out, logprobs)))
        with np.load(file) as arrays:
            return TokenLosses(arrays["losses"], arrays["kl_divergences"])


@dataclass(frozen=True, slots=True)
class AlarmRate:
    """Shares of builds with an alarm, for one number of held-out samples."""

    perplexity_increase: float  # measured mean over the builds
    builds: int
    samples: int
    gate_alarm_rate: float  # by the bounds on KL divergence of the committed gate
    perplexity_alarm_rate: float  # by a bound on perplexity


class GateEvaluator:
    """Compares builds with the baseline on subsets of the held-out set, by the bounds of the committed gate."""

    def __init__(self, builds: BuildCache) -> None:
        self.lengths = np.array([len(sample.answer) for sample in builds.held_out])
        self.groups = np.array([sample.group for sample in builds.held_out])
        self.baseline = builds.rebuild(0)
        self.bounds = Gate.load(ROOT / "benchmarks" / "gate" / "gate.toml").baseline

    def alarm_rates(self, builds: list[TokenLosses]) -> list[AlarmRate]:
        """Return the rates for every number of samples; all builds are compared on the same subsets."""
        increase = float(np.mean([math.expm1((build.losses - self.baseline.losses).mean()) for build in builds]))
        return [self._rate(builds, increase, samples) for samples in SAMPLE_COUNTS]

    def _rate(self, builds: list[TokenLosses], increase: float, samples: int) -> AlarmRate:
        random, whole = np.random.default_rng(samples), samples == len(self.lengths)
        subsets = [random.permutation(len(self.lengths)) < samples for _ in range(1 if whole else SUBSETS_PER_COUNT)]
        gate = np.mean([self._gate_alarm(build, subset) for build in builds for subset in subsets])
        rises = [self._mean_loss_increase(build, subset) for build in builds for subset in subsets]
        perplexity = np.mean(np.expm1(rises) > PERPLEXITY_BOUND)
        rates = (round(float(gate), 4), round(float(perplexity), 4))
        return AlarmRate(round(increase, 6), len(builds), samples, *rates)

    def _mean_loss_increase(self, build: TokenLosses, subset: NDArray[np.bool_]) -> float:
        return float((build.losses - self.baseline.losses)[self._tokens(subset)].mean())

    def _gate_alarm(self, build: TokenLosses, subset: NDArray[np.bool_]) -> bool:
        increase = build.kl_divergences - self.baseline.kl_divergences
        for group, bounds in self.bounds.items():
            if bound := bounds.get("kl_divergence_increase"):
                tokens = self._tokens(subset & (self.groups == group))
                if not bound.holds(float(increase[tokens].mean())):
                    return True
        return False

    def _tokens(self, subset: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.repeat(subset, self.lengths)


def alarm_rows(count: int) -> list[dict[str, Any]]:
    """Build `count` rebuilds and the regressions, and return the alarm rates of all."""
    builds = BuildCache(LanguageModelBench(RECIPE))
    rebuilds = [builds.rebuild(seed + 1) for seed in range(count)]
    evaluator = GateEvaluator(builds)
    rows = [{"target_increase": 0.0, **asdict(rate)} for rate in evaluator.alarm_rates(rebuilds)]
    for increase in TARGET_INCREASES:
        scale, draws = builds.noise_scale(increase), count if increase == MAIN_INCREASE else max(1, count // 8)
        regressed = [builds.regressed(scale, 100 + seed) for seed in range(draws)]
        settings = {"target_increase": increase, "noise_scale": round(scale, 6)}
        rows += [{**settings, **asdict(rate)} for rate in evaluator.alarm_rates(regressed)]
    return rows


def main() -> None:
    """Measure and record the alarm rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        write_result("gate-power", provenance("benchmarks.gate_power") | {"rates": alarm_rows(options.builds)})


if __name__ == "__main__":
    main()
