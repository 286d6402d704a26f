"""Convert a checkpoint to evaluated artifacts: quantize, export, evaluate. Start reading here."""

from collections.abc import Sequence
from pathlib import Path

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import FormatError, RecipeError
from mcpmq.evaluate import Settings
from mcpmq.export import export
from mcpmq.formats import FORMATS, FormatName, check_plan
from mcpmq.mixed_precision import Budget, search_recipe
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import RECIPE_BY_BITS, Recipe
from mcpmq.report import Report, compare, write_report
from mcpmq.report.model_cards import update_model_cards


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    formats: Sequence[FormatName],
    calibration: str | Path,
    recipe: Recipe | str | None = None,
    bits: int | None = None,
    eval_set: str | Path | None = None,
    budget: Budget | None = None,
    settings: Settings | None = None,
) -> Report:
    """Quantize a checkpoint, export it to formats, and measure the artifacts against it. A killed run resumes.

    Args:
        checkpoint: Folder of a Hugging Face checkpoint, or a hub id.
        out: Folder for `quantized/`, one folder for every format, and the report as JSON, Markdown and HTML.
        formats: Formats to write.
        calibration: Folder of the calibration set.
        recipe: A recipe, its name, or the path of its TOML file.
        bits: 4 or 8, short for the recipe `calibrated-int4` or `phone-int8`.
        eval_set: Folder of the evaluation set; by default every fifth sample of the calibration set is held out.
        budget: Limit of size or memory; the scheme of every weight is then searched, and the recipe sets the method.
        settings: Threads, device, cache and progress; by default all cores, a GPU if there is one, no progress.

    Raises:
        McpmqError: an input is invalid, or a format does not support the recipe; raised before weights are read.
    """
    original, out, settings = Checkpoint.open(checkpoint), Path(out), settings or Settings.from_options()
    recipe = _load_recipe(recipe, bits)
    _check_formats(formats)
    calibration_set, evaluation_set = _open_sets(calibration, eval_set)
    if recipe.needs_calibration and eval_set:
        evaluation_set.check_disjoint(calibration_set.path.name, calibration_set.fingerprints)
    if budget:
        recipe = _search(original, recipe, formats, budget, calibration_set, settings)
    plan = make_plan(original, recipe)
    for name in formats:
        check_plan(plan, name)

    quantized = quantize(plan, out / "quantized", calibration_set, settings.progress, settings.device)
    artifacts = [export(quantized, name, out / name, settings.progress) for name in formats]

    return evaluate(artifacts, original, evaluation_set, settings, out=out, held_out_from_calibration=eval_set is None)


def evaluate(
    artifacts: Sequence[Artifact],
    checkpoint: Checkpoint,
    eval_set: SampleSet,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    engine_baselines: Sequence[Artifact] = (),
    held_out_from_calibration: bool = False,
) -> Report:
    """Measure artifacts against their original, each in its own engine, on the same pixels and tokens.

    Args:
        artifacts: Artifacts in any format, or quantized models.
        checkpoint: The original.
        eval_set: Samples to measure on.
        settings: Threads, cache and progress; by default all cores and no progress.
        out: Folder to write report.json, report.md and report.html to; the model cards of the artifacts then get their
            results. Without it nothing is written.
        engine_baselines: Unquantized artifacts, at most one for every format, to separate the error of the engine from
            the error of quantization.
        held_out_from_calibration: Whether `eval_set` is the held-out part of the calibration set.

    Raises:
        ArtifactError: an artifact was made from another checkpoint, or its files changed.
        DatasetError: an artifact was calibrated on a sample of `eval_set`.
        EngineError: an engine failed.
    """
    report = compare(
        checkpoint,
        artifacts,
        eval_set,
        settings or Settings.from_options(),
        engine_baselines=engine_baselines,
        held_out_from_calibration=held_out_from_calibration,
    )
    if out:
        write_report(report, Path(out))
        update_model_cards(report, (*engine_baselines, *artifacts))
    return report


def _load_recipe(recipe: Recipe | str | None, bits: int | None) -> Recipe:
    if (recipe is None) == (bits is None):
        raise RecipeError("both or none of `recipe` and `bits` are given", "give one of them")
    if bits is not None and bits not in RECIPE_BY_BITS:
        raise RecipeError(f"{bits} bits have no recipe", "give 4 or 8, or a recipe")
    return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe or RECIPE_BY_BITS[bits or 4])


def _check_formats(formats: Sequence[str]) -> None:
    if unknown := [name for name in formats if name not in FORMATS]:
        raise FormatError(f"`{unknown[0]}` is not a format", f"give one of: {', '.join(FORMATS)}")


def _search(
    checkpoint: Checkpoint,
    recipe: Recipe,
    formats: Sequence[FormatName],
    budget: Budget,
    samples: SampleSet,
    settings: Settings,
) -> Recipe:
    if len(formats) != 1:
        raise FormatError(
            f"{len(formats)} formats are given with a budget; a budget applies to one format",
            "give one format, and convert again for the other",
        )
    options = settings.threads, settings.progress, settings.device
    return search_recipe(checkpoint, recipe, formats[0], budget, samples, *options).recipe


def _open_sets(calibration: str | Path, eval_set: str | Path | None) -> tuple[SampleSet, SampleSet]:
    calibration_set = SampleSet.open(calibration)
    return (calibration_set, SampleSet.open(eval_set)) if eval_set else calibration_set.split_holdout()
