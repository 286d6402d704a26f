"""Measure recipes that a search chooses on the reference checkpoint, with and without structured compression.

    python -m benchmarks.structured_front

One search measures the losses of schemes, layers, vocabularies and limits of images. For several limits of the file
size, and of the memory with a context of one image, its best recipe with schemes alone and its best recipe of all
choices are quantized and measured in PyTorch on held-out samples.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import Any

from benchmarks.commands import HELDOUT, REFERENCE, STARTER, WORK, provenance, write_result
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress
from mcpmq.compression_tables import ImagesTable, VocabularyTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import RecipeError
from mcpmq.evaluate import Settings
from mcpmq.evaluate.bootstrap import bootstrap_mean
from mcpmq.evaluate.schema import ORIGINAL, SampleMetrics
from mcpmq.mixed_precision import Budget, SearchResult, Structure, prepare_search
from mcpmq.mixed_precision.prepared import PreparedSearch
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.report import Report, compare
from mcpmq.system.progress import silent

FOLDER = WORK / "structured-front"
CALIBRATION_SAMPLES, EVALUATION_SAMPLES = 80, 76
CONTEXT, IMAGE_SIZE = 512, (448, 448)
SIZES = (4_200_000, 4_400_000, 4_800_000, 5_600_000)
MEMORIES = (12_000_000, 12_400_000)
BASE = "calibrated-int4"
STRUCTURE = Structure(
    max_removed=2,
    images=(ImagesTable(max_slice_nums=2), ImagesTable(max_slice_nums=1)),
    image_sizes=(IMAGE_SIZE,),
    vocabularies=tuple(VocabularyTable(corpus=["calibration"], max_tokens=count) for count in (896, 768, 640, 512)),
)


@dataclass(frozen=True, slots=True)
class Point:
    """The best recipe of a limit."""

    budget: Budget
    structured: bool
    result: SearchResult

    @property
    def resource(self) -> str:
        """The limited resource."""
        return self.result.resource

    @property
    def key(self) -> str:
        """The schemes and tables; points with equal ones have the same artifact."""
        return json.dumps({**self.result.recipe.to_dict(), "name": ""})

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.budget.label}-{'structured' if self.structured else 'schemes'}"


def main() -> None:
    """Search, quantize and measure all points."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    checkpoint, base = Checkpoint.open(REFERENCE), Recipe.load(BASE)
    calibration = SampleSet.open(STARTER).spread(CALIBRATION_SAMPLES)
    budget = Budget(memory_nbytes=max(MEMORIES), context=CONTEXT)
    with prepare_search(checkpoint, base, "gguf", budget, calibration, 1, silent, "cpu", STRUCTURE) as prepared:
        points = [*_points(prepared)]
        costs = {name: str(one) for name, one in prepared.space.costs.items()}
        costs |= {one.layer: f"mean KLD {one.loss:.4g} nats" for one in prepared.space.choices.layers}
    by_recipe = {one.key: one for one in points}
    artifacts = [_quantize(checkpoint, calibration, one) for one in by_recipe.values()]
    samples = SampleSet.open(HELDOUT).spread(EVALUATION_SAMPLES)
    settings = Settings.from_options(threads=1, use_cache=False, generate_answers=False)
    report = compare(checkpoint, artifacts, samples, settings)
    facts = {"calibration_samples": len(calibration), "samples": len(samples), "context": CONTEXT, "costs": costs}
    numbers = {key: number for number, key in enumerate(by_recipe)}
    rows = [_row(one, numbers[one.key], report) for one in points]
    write_result("structured-front", provenance("benchmarks.structured_front") | facts | {"rows": rows})


def _points(prepared: PreparedSearch) -> Iterator[Point]:
    """Yield the best recipes of all limits that have one."""
    budgets = [Budget(file_nbytes=nbytes, context=CONTEXT) for nbytes in SIZES]
    budgets += [Budget(memory_nbytes=nbytes, context=CONTEXT) for nbytes in MEMORIES]
    for budget in budgets:
        for structured in (False, True):
            try:
                yield Point(budget, structured, prepared.best(budget, structured=structured))
            except RecipeError as error:
                print(f"{budget}, {structured=}: {error}")


def _quantize(checkpoint: Checkpoint, calibration: SampleSet, point: Point) -> Any:
    recipe = point.result.recipe
    with compress(checkpoint, recipe, calibration) as view:
        return quantize(make_plan(view, recipe), FOLDER / point.name, calibration, device="cpu").artifact


def _row(point: Point, number: int, report: Report) -> dict[str, Any]:
    result, measured = point.result, report.artifacts[number].measurement
    pairs = list(zip(report.original.samples, measured.samples, strict=True))
    divergences = [_divergences(*pair) for pair in pairs]
    matches = [one.compared[ORIGINAL].top1_match for _, one in pairs if one.has_original_tokens]
    return {
        "resource": point.resource,
        "limit_nbytes": point.budget.file_nbytes or point.budget.memory_nbytes,
        "structured": point.structured,
        "structure": str(result.structure),
        "nbytes": result.estimate.nbytes,
        "memory_nbytes": result.estimate.device.concurrent_nbytes,
        "context": result.estimate.device.context,
        "rank_score": result.rank_score,
        "divergence": bootstrap_mean(divergences).model_dump(mode="json"),
        "top_1_agreement": bootstrap_mean(matches).model_dump(mode="json"),
        "tokens": sum(map(len, divergences)),
        "samples_with_other_tokens": sum(not one.has_original_tokens for _, one in pairs),
    }


def _divergences(before: SampleMetrics, after: SampleMetrics) -> list[float]:
    """Return the KLD over kept tokens less the log of their probability, at every answer token.

    A sample with removed tokens has the increase of its loss for each answer token of the original.
    """
    if not after.has_original_tokens:
        increase = max(0.0, sum(after.losses) - sum(before.losses))
        return [increase / len(before.losses)] * len(before.losses)
    compared = after.compared[ORIGINAL]
    removed = compared.removed_probability or [0.0] * len(compared.kl_divergences)
    return [kld - log(1 - one) for kld, one in zip(compared.kl_divergences, removed, strict=True)]


if __name__ == "__main__":
    main()
