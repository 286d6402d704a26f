"""KL divergence against the number of calibration samples, their share of images, and their turns.

python -m benchmarks.calibration_study [--only GROUP ...]

The language matrices of the reference are quantized to int4-g32 by GPTQ with the targets of the built-in recipes, the
outputs of the model, and with those of layers; they are measured in PyTorch on every second held-out sample. The draws
are nested: a larger number of samples contains a smaller one of the same seed. A row is recorded when it is measured,
and rows of the same recipe that are recorded are kept.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.commands import HELDOUT, REFERENCE, RESULTS, STARTER, WORK, provenance, write_result
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import ReadOptions, Sample, SampleSet, Turn
from mcpmq.evaluate import Settings
from mcpmq.evaluate.bootstrap import bootstrap_mean
from mcpmq.evaluate.inputs import EncodedInputs, encode_samples
from mcpmq.evaluate.measure import measure, measure_original
from mcpmq.families.encoding import encode_sample
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe

NAME = "calibration-study"
FOLDER = WORK / NAME
WEIGHTS = '[weights]\n"language.*" = "int4-g32"\n'
NEAREST = f'name = "nearest"\nmethod = "rtn"\n{WEIGHTS}'
CALIBRATED = f'name = "study"\nmethod = "gptq"\ntargets = "{{}}"\n{WEIGHTS}'
COUNTS, SHARES, SEEDS = (4, 8, 16, 32, 64, 128, 160), (0.0, 0.25, 0.5, 0.75, 1.0), (0, 1)
MIXED_COUNT = 32  # samples of a mixture
TURNS = 4  # prompts of a joined conversation
TARGETS = ("model", "layer")
EVERY = 2  # held-out samples


@dataclass(frozen=True, slots=True)
class Cell:
    """A calibration set of the study: drawn samples, the share of those with an image, and prompts per conversation."""

    group: str  # samples, mixture or turns
    samples: int
    seed: int
    image_share: float | None = None  # None: that of the set
    turns: int = 1
    targets: str = "model"

    @property
    def name(self) -> str:
        """`mixture-32-0.5-1-0-model`, the name of the folder."""
        share = "all" if self.image_share is None else f"{self.image_share:g}"
        return f"{self.group}-{self.samples}-{share}-{self.turns}-{self.seed}-{self.targets}"

    def draw(self, samples: SampleSet) -> list[Sample]:
        """Return the samples of the cell."""
        with_image = [one for one in samples if one.has_vision]
        texts = [one for one in samples if not one.has_vision]
        if self.image_share is None:
            drawn = _draw(samples.samples, self.samples, self.seed)
        else:
            images = round(self.samples * self.image_share)
            drawn = [*_draw(with_image, images, self.seed), *_draw(texts, self.samples - images, self.seed)]
        return [_joined(drawn[start : start + self.turns]) for start in range(0, len(drawn), self.turns)]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The original on the held-out samples, and artifacts in comparison with it."""

    checkpoint: Checkpoint
    inputs: EncodedInputs
    settings: Settings
    logprobs: Path

    def divergences(self, artifact: Artifact) -> dict[str, dict[str, float]]:
        """Return the mean KL divergence of every group with the bounds of its 95 % interval."""
        found = measure(artifact, self.inputs, self.settings, {"original": self.logprobs})
        clusters: dict[str, list[Sequence[float]]] = {}
        for one in found.samples:
            clusters.setdefault(one.group, []).append(one.compared["original"].kl_divergences)
        means = {group: bootstrap_mean(values) for group, values in clusters.items()}
        return {group: {"value": one.value, "low": one.low, "high": one.high} for group, one in means.items()}


def cells() -> Iterator[Cell]:
    """Yield all cells; the first ones are of the first seed."""
    for seed in SEEDS:
        for targets in TARGETS:
            counts = COUNTS if seed == SEEDS[0] else COUNTS[:-1]  # the last one is the whole set
            yield from (Cell("samples", count, seed, targets=targets) for count in counts)
        yield from (Cell("mixture", MIXED_COUNT, seed, share) for share in SHARES)
        yield Cell("turns", MIXED_COUNT, seed, 0.75, TURNS)


def _draw(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    return [samples[index] for index in ReadOptions(num_samples=count, seed=seed).draw(len(samples))]


def _joined(samples: Sequence[Sample]) -> Sample:
    """Return a conversation with the prompts and answers of samples."""
    turns: list[Turn] = [turn for sample in samples for turn in sample.turns]
    return Sample(samples[0].id, tuple(turns))


def measure_cell(cell: Cell | None, starter: SampleSet, evaluation: Evaluation) -> dict[str, Any]:
    """Quantize with a calibration set, or to nearest without one; return its size and the KL divergence by group."""
    checkpoint = evaluation.checkpoint
    folder = FOLDER / (cell.name if cell else "nearest")
    shutil.rmtree(folder, ignore_errors=True)
    recipe = folder.with_suffix(".toml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(CALIBRATED.format(cell.targets) if cell else NEAREST)
    samples = cell.draw(starter) if cell else []
    processor = checkpoint.family.open_processor(checkpoint.path)
    encoded = [encode_sample(processor, sample) for sample in samples]
    calibration = SampleSet(starter.path, tuple(samples)) if cell else None
    model = quantize(make_plan(checkpoint, Recipe.load(str(recipe))), folder, calibration, device="cpu")
    divergences = evaluation.divergences(model.artifact)
    shutil.rmtree(folder)
    return {
        **(asdict(cell) if cell else {"group": "nearest"}),
        "tokens": sum(len(one.tokens) for one in encoded),
        "images": sum(len(one.slices_per_image) for one in encoded),
        "answers": sum(len(one.measured) for one in encoded),
        "kl_divergence": divergences,
    }


def main() -> None:
    """Measure the cells that are not recorded yet, and record each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("samples", "mixture", "turns"), help="groups to measure")
    options = parser.parse_args()
    checkpoint, starter = Checkpoint.open(REFERENCE), SampleSet.open(STARTER)
    held_out = SampleSet.open(HELDOUT)
    tested = SampleSet(held_out.path, held_out.samples[::EVERY])
    settings = Settings.from_options(threads=1)
    rows = recorded_rows()
    with encode_samples(checkpoint, tested, settings) as inputs:
        original = measure_original(checkpoint, inputs, settings)
        evaluation = Evaluation(checkpoint, inputs, settings, original.logprobs)
        for cell in (None, *cells()):
            key = asdict(cell) if cell else {"group": "nearest"}
            chosen = cell is None or not options.only or cell.group in options.only
            if not chosen or any(key.items() <= row.items() for row in rows):
                continue
            start = perf_counter()
            rows.append(measure_cell(cell, starter, evaluation))
            counts = {group: inputs.groups.count(group) for group in dict.fromkeys(inputs.groups)}
            result = {"evaluated": counts, "recipe": CALIBRATED, "rows": rows}
            write_result(NAME, provenance("benchmarks.calibration_study") | result)
            print(json.dumps(rows[-1]), f"{perf_counter() - start:.0f} s", flush=True)


def recorded_rows() -> list[dict[str, Any]]:
    """Return the rows of the committed result, none if they are those of another recipe."""
    file = RESULTS / f"{NAME}.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    rows: list[dict[str, Any]] = result["rows"] if result.get("recipe") == CALIBRATED else []
    return rows


if __name__ == "__main__":
    main()
