"""KL divergence against the number of calibration samples, their share of images, and their turns.

python -m benchmarks.calibration_study [--only GROUP ...]

The language matrices of the reference are quantized with GPTQ to int4-g32, and measured in PyTorch on every
fourth held-out sample. The draws are nested: a larger number of samples contains a smaller one of the same seed.
A row is recorded when it is measured, and rows that are already recorded are kept.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.commands import HELDOUT, REFERENCE, RESULTS, STARTER, WORK, provenance, write_result
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import ReadOptions, Sample, SampleSet, Turn
from mcpmq.evaluate import Settings
from mcpmq.evaluate.inputs import EncodedInputs, encode_samples
from mcpmq.evaluate.measure import measure, measure_original
from mcpmq.families.encoding import encode_sample
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe

NAME = "calibration-study"
FOLDER = WORK / NAME
RECIPE = 'name = "study"\nmethod = "{0}"\n[weights]\n"language.*" = "int4-g32"\n'
COUNTS, SHARES, SEEDS = (4, 8, 16, 32, 64, 128), (0.0, 0.25, 0.5, 0.75, 1.0), (0, 1)
MIXED_COUNT = 32  # samples of a mixture
TURNS = 4  # prompts of a joined conversation
EVERY = 4  # held-out samples


@dataclass(frozen=True, slots=True)
class Cell:
    """A calibration set of the study: drawn samples, the share of those with an image, and prompts per conversation."""

    group: str  # samples, mixture or turns
    samples: int
    seed: int
    image_share: float | None = None  # None: that of the set
    turns: int = 1

    @property
    def name(self) -> str:
        """`mixture-32-0.5-1-0`, the name of the folder."""
        share = "all" if self.image_share is None else f"{self.image_share:g}"
        return f"{self.group}-{self.samples}-{share}-{self.turns}-{self.seed}"

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


def cells() -> Iterator[Cell]:
    """Yield all cells; the first ones are of the first seed."""
    for seed in SEEDS:
        yield from (Cell("samples", count, seed) for count in COUNTS)
        yield from (Cell("mixture", MIXED_COUNT, seed, share) for share in SHARES)
        yield Cell("turns", MIXED_COUNT, seed, 0.75, TURNS)


def _draw(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    return [samples[index] for index in ReadOptions(num_samples=count, seed=seed).draw(len(samples))]


def _joined(samples: Sequence[Sample]) -> Sample:
    """Return a conversation with the prompts and answers of samples."""
    turns: list[Turn] = [turn for sample in samples for turn in sample.turns]
    return Sample(samples[0].id, tuple(turns))


def measure_cell(
    cell: Cell | None, checkpoint: Checkpoint, starter: SampleSet, inputs: EncodedInputs, settings: Settings
) -> dict[str, Any]:
    """Quantize with a calibration set, or to nearest without one; return its size and the KL divergence by group."""
    folder = FOLDER / (cell.name if cell else "nearest")
    shutil.rmtree(folder, ignore_errors=True)
    recipe = folder.with_suffix(".toml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(RECIPE.format("gptq" if cell else "rtn"))
    samples = cell.draw(starter) if cell else []
    processor = checkpoint.family.open_processor(checkpoint.path)
    encoded = [encode_sample(processor, sample) for sample in samples]
    calibration = SampleSet(starter.path, tuple(samples)) if cell else None
    model = quantize(make_plan(checkpoint, Recipe.load(str(recipe))), folder, calibration, device="cpu")
    original = measure_original(checkpoint, inputs, settings)
    found = measure(model.artifact, inputs, settings, {"original": original.logprobs})
    shutil.rmtree(folder)
    divergences: dict[str, list[float]] = {}
    for one in found.samples:
        divergences.setdefault(one.group, []).extend(one.compared["original"].kl_divergences)
    return {
        **(asdict(cell) if cell else {"group": "nearest"}),
        "tokens": sum(len(one.tokens) for one in encoded),
        "images": sum(len(one.slices_per_image) for one in encoded),
        "answers": sum(len(one.measured) for one in encoded),
        "kl_divergence": {group: sum(values) / len(values) for group, values in divergences.items()},
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
        for cell in (None, *cells()):
            key = asdict(cell) if cell else {"group": "nearest"}
            chosen = cell is None or not options.only or cell.group in options.only
            if not chosen or any(key.items() <= row.items() for row in rows):
                continue
            rows.append(measure_cell(cell, checkpoint, starter, inputs, settings))
            counts = {group: inputs.groups.count(group) for group in dict.fromkeys(inputs.groups)}
            result = {"evaluated": counts, "recipe": RECIPE.format("gptq"), "rows": rows}
            write_result(NAME, provenance("benchmarks.calibration_study") | result)
            print(json.dumps(rows[-1]), flush=True)


def recorded_rows() -> list[dict[str, Any]]:
    """Return the rows of the committed result."""
    file: Path = RESULTS / f"{NAME}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.is_file() else []
    return rows


if __name__ == "__main__":
    main()
