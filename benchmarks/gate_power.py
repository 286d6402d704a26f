"""How often the gate catches a small regression, and how often it is wrong about an honest rebuild.

    python -m benchmarks.gate_power [--builds 100]      a quarter of an hour on an idle core; a stopped run goes on

The language model of the reference checkpoint is rounded again and again by the product's own rounders, each time from
statistics of another half of the calibration set (honest rebuilds); to one build noise is added in proportion to every
weight matrix, so much that perplexity rises by 0.1 to 1 % on average over draws (regressions). All are measured on the
held-out set in PyTorch, with the original's image features: nothing before the language model differs. What the gate
makes of each is counted for the whole set and for random parts of it.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.run import provenance
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.evaluate import Settings, encoded
from mcpmq.execution.torch_model import build, floats_of
from mcpmq.gate import Gate
from mcpmq.grids import dequantize
from mcpmq.plan import Step, make_plan
from mcpmq.recipe import Recipe
from mcpmq.rounding import ROUNDERS
from mcpmq.rounding.stats import LayerStats

ROOT = Path(__file__).parent.parent
SETS, RESULTS, KEPT = ROOT / "calibration", ROOT / "benchmarks" / "results", ROOT / "build" / "detection"
GROUPS, DRAWN = 20, 10  # of the calibration samples; a rebuild sees so many groups of them
EFFECTS, TARGET = (0.001, 0.002, 0.003, 0.005, 0.01), 0.003  # mean rises of perplexity; of others an eighth is built
RECIPE = "calibrated-quality-int4"
SAMPLES, PARTS = (38, 76, 152, 304), 10  # how many held-out samples, and how many random choices of so many
PERPLEXITY_BOUND = 0.0015  # what a gate on perplexity would have to allow to catch the half of a rise by 0.3 %
FIRST_SCALE, FIRST_DRAWS = 0.02, 6  # from which the scale for every effect is taken: the rise goes with its square
BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Prepared:
    """One sample before the language model: embeddings [tokens, hidden], and the answer's token ids at the end."""

    embeddings: Tensor
    answer: Tensor
    kind: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Of every answer token of every sample, one after the other: loss, and divergence from the original."""

    losses: NDArray[np.float64]
    divergences: NDArray[np.float64]


class Bench:
    """The reference checkpoint, whole in float32, and everything that its language model is asked about."""

    def __init__(self) -> None:
        self.checkpoint = Checkpoint.open(SETS / "reference")
        self.plan = make_plan(self.checkpoint, Recipe.load(RECIPE))
        self.native = build(self.checkpoint.family, self.checkpoint.config, self.checkpoint.specs)
        for block in self.native.blocks:
            self.native.fill(block, lambda spec: floats_of(self.checkpoint.load(spec), spec))
        self.module = self.native.module
        named = dict(self.module.named_modules())
        steps = [step for step in self.plan.steps if step.spec.component == "language" and step.spec.role == "matrix"]
        self.linears = {step: named[step.spec.hub_name.removesuffix(".weight")] for step in steps}
        self.full = {step: linear.weight.detach().clone() for step, linear in self.linears.items()}

    def prepared(self, name: str) -> list[Prepared]:
        """The samples of a set, seen by the original's vision tower."""
        arguments, found = self.checkpoint.family.processor(self.checkpoint.path).arguments, []
        with encoded(self.checkpoint, CalibrationSet.open(SETS / name), Settings(threads=1)) as inputs:
            for sample, kind in zip(inputs.files, inputs.kinds, strict=True):
                tensors = {key: torch.from_numpy(value) for key, value in arguments(sample).items()}
                answer = torch.from_numpy(sample.tokens[sample.answer_start :])
                found.append(Prepared(self._before_language(tensors), answer, kind))
        return found

    def _before_language(self, tensors: Mapping[str, Tensor]) -> Tensor:
        taken: list[Tensor] = []
        handle = self.module.llm.model.register_forward_pre_hook(
            lambda _, __, named: taken.append(named["inputs_embeds"][0]), with_kwargs=True
        )
        with handle:
            self.module(**tensors, logits_to_keep=1, use_cache=False)
        return taken[0]

    def log_probabilities(self, samples: list[Prepared]) -> Tensor:
        """Of all answer tokens, in the order of the samples: float64 [tokens, vocabulary]."""
        rows: dict[int, Tensor] = {}
        for batch in _batches(samples):
            padded = nn.utils.rnn.pad_sequence([samples[one].embeddings for one in batch], batch_first=True)
            states = self.module.llm.model(inputs_embeds=padded, use_cache=False).last_hidden_state
            for row, one in enumerate(batch):
                length, count = len(samples[one].embeddings), len(samples[one].answer)
                rows[one] = states[row, length - count - 1 : length - 1]
        logits = self.module.llm.lm_head(torch.cat([rows[one] for one in range(len(samples))]))
        return logits.double().log_softmax(-1)

    def figures(self, samples: list[Prepared], original: Tensor) -> Figures:
        """What the model as it now is makes of the samples."""
        found = self.log_probabilities(samples)
        truth = torch.cat([one.answer for one in samples])
        losses = -found.gather(1, truth[:, None])[:, 0]
        return Figures(losses.numpy(), (original.exp() * (original - found)).sum(-1).numpy())

    def seen_by(self, samples: list[Prepared]) -> list[dict[Step, LayerStats]]:
        """Statistics of every linear, for every group of samples."""
        return [self._statistics(samples[group::GROUPS]) for group in range(GROUPS)]

    def _statistics(self, samples: list[Prepared]) -> dict[Step, LayerStats]:
        grams: dict[Step, Tensor] = {}
        handles = []
        for step, linear in self.linears.items():
            grams[step] = torch.zeros(linear.in_features, linear.in_features)

            def see(_: nn.Module, args: tuple[Tensor, ...], gram: Tensor = grams[step]) -> None:
                gram.addmm_(args[0][0].T, args[0][0])

            handles.append(linear.register_forward_pre_hook(see))
        for sample in samples:
            self.module.llm.model(inputs_embeds=sample.embeddings[None], use_cache=False)
        for handle in handles:
            handle.remove()
        counts = {"vision": 0, "text": sum(len(sample.embeddings) for sample in samples), "answer": 0}
        return {
            # GPTQ reads the Gram matrix; what else statistics hold is for other ways of rounding.
            step: LayerStats(gram, *[gram.diagonal()] * 3, counts, float(counts["text"]))
            for step, gram in grams.items()
        }

    def rebuild(self, statistics: list[dict[Step, LayerStats]]) -> dict[Step, Tensor]:
        """Every linear rounded from the sum of these groups' statistics."""
        built = {}
        for step, weight in self.full.items():
            seen = statistics[0][step]
            for other in statistics[1:]:
                seen += other[step]
            built[step] = dequantize(ROUNDERS["gptq"](weight, step.scheme, seen))
        return built

    def take(self, weights: Mapping[Step, Tensor]) -> None:
        """Give the language model these weights."""
        for step, linear in self.linears.items():
            linear.weight.data = weights[step]


def _batches(samples: list[Prepared]) -> Iterator[list[int]]:
    order, batch = sorted(range(len(samples)), key=lambda one: len(samples[one].embeddings)), []
    for one in order:
        if batch and (len(batch) + 1) * len(samples[one].embeddings) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(one)
    yield batch


def noised(weights: Mapping[Step, Tensor], scale: float, seed: int) -> dict[Step, Tensor]:
    """Weights with normal noise of `scale` times the root mean square of their matrix."""
    random = torch.Generator().manual_seed(seed)
    return {
        step: weight + scale * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=random)
        for step, weight in weights.items()
    }


class Builds:
    """Figures of every build, kept on disk as they are made, so that a run that was stopped goes on."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.folder = bench, KEPT / RECIPE
        self.folder.mkdir(parents=True, exist_ok=True)
        self.held_out = bench.prepared("heldout")

    @cached_property
    def seen(self) -> tuple[Tensor, list[dict[Step, LayerStats]]]:
        """The original's log-probabilities and statistics: taken before the first build replaces its weights."""
        return self.bench.log_probabilities(self.held_out), self.bench.seen_by(self.bench.prepared("starter"))

    def honest(self, seed: int) -> Figures:
        """A build from half of the calibration set; seed 0 is the baseline."""
        return self._kept(f"honest-{seed}", lambda: self.weights(seed))

    def regressed(self, scale: float, seed: int) -> Figures:
        """The baseline with noise added."""
        return self._kept(f"noise-{scale:.6f}-{seed}", lambda: noised(self.weights(0), scale, seed))

    def weights(self, seed: int) -> dict[Step, Tensor]:
        """The language model's matrices of an honest build."""
        drawn = np.random.default_rng(seed).choice(GROUPS, DRAWN, replace=False)
        _, statistics = self.seen
        return self.bench.rebuild([statistics[group] for group in drawn])

    def scale(self, effect: float) -> float:
        """Of the noise that raises perplexity by so much on average."""
        before = self.honest(0).losses.mean()
        rises = [self.regressed(FIRST_SCALE, seed).losses.mean() - before for seed in range(FIRST_DRAWS)]
        return FIRST_SCALE * math.sqrt(math.log1p(effect) / np.mean(rises))

    def _kept(self, name: str, weights: Callable[[], Mapping[Step, Tensor]]) -> Figures:
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            original, _ = self.seen
            self.bench.take(weights())
            figures = self.bench.figures(self.held_out, original)
            np.savez(file, losses=figures.losses, divergences=figures.divergences)
        with np.load(file) as kept:
            return Figures(kept["losses"], kept["divergences"])


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of so many builds raised an alarm."""

    rise: float  # of perplexity, on average over the builds, measured; of honest rebuilds too
    builds: int
    samples: int
    gate_alarms: float  # share of builds, by the bounds on divergence of the committed gate
    perplexity_alarms: float  # by a bound on perplexity instead


class Judge:
    """Holds builds against the baseline on parts of the held-out set, by the bounds of the committed gate."""

    def __init__(self, builds: Builds) -> None:
        self.lengths = np.array([len(sample.answer) for sample in builds.held_out])
        self.kinds = np.array([sample.kind for sample in builds.held_out])
        self.before = builds.honest(0)
        self.bounds = Gate.load(ROOT / "benchmarks" / "gate" / "gate.toml").baseline

    def rates(self, found: list[Figures]) -> list[Rate]:
        """For every number of samples; all builds meet the same parts of the set."""
        rise = float(np.mean([math.expm1((one.losses - self.before.losses).mean()) for one in found]))
        return [self._rate(found, rise, samples) for samples in SAMPLES]

    def _rate(self, found: list[Figures], rise: float, samples: int) -> Rate:
        random, whole = np.random.default_rng(samples), samples == len(self.lengths)
        parts = [random.permutation(len(self.lengths)) < samples for _ in range(1 if whole else PARTS)]
        gate = [self._gate_alarm(one, part) for one in found for part in parts]
        rises = [(one.losses - self.before.losses)[self._tokens(part)].mean() for one in found for part in parts]
        perplexity = np.mean(np.expm1(rises) > PERPLEXITY_BOUND)
        return Rate(round(rise, 6), len(found), samples, round(float(np.mean(gate)), 4), round(float(perplexity), 4))

    def _gate_alarm(self, build: Figures, part: NDArray[np.bool_]) -> bool:
        increase = build.divergences - self.before.divergences
        for kind, bounds in self.bounds.items():
            if bound := bounds.get("kl_divergence_increase"):
                chosen = increase[self._tokens(part & (self.kinds == kind))]
                if not bound.holds(float(chosen.mean())):
                    return True
        return False

    def _tokens(self, part: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.repeat(part, self.lengths)


def main(count: int) -> None:
    """Make the builds, judge them, and keep the rates with command, commit, machine and versions."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        builds = Builds(Bench())
        honest = [builds.honest(seed + 1) for seed in range(count)]
        judge = Judge(builds)
        rows = [{"effect": 0.0, **asdict(rate)} for rate in judge.rates(honest)]
        for effect in EFFECTS:
            scale, draws = builds.scale(effect), count if effect == TARGET else max(1, count // 8)
            regressed = [builds.regressed(scale, 100 + seed) for seed in range(draws)]
            rows += [{"effect": effect, "scale": round(scale, 6), **asdict(rate)} for rate in judge.rates(regressed)]
    (RESULTS / "detection.json").write_text(
        json.dumps({**provenance("benchmarks.gate_power"), "rates": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=100)
    main(parser.parse_args().builds)
