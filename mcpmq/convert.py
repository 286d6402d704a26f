"""The whole way. Read this first."""

from collections.abc import Sequence
from pathlib import Path

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import FormatError
from mcpmq.evaluate import Settings
from mcpmq.export import export
from mcpmq.formats import FormatName, check
from mcpmq.mixed_precision import Budget, fit
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.report import Report, compare, write_report
from mcpmq.report.model_cards import add_figures


def convert(
    source: str | Path,
    out: Path,
    recipe: Recipe,
    formats: Sequence[FormatName],
    calibration: Path,
    held_out: Path | None,
    settings: Settings,
    budget: Budget | None = None,
) -> Report:
    """A full-precision checkpoint in; artifacts that were measured against it, and the report, in `out`.

    With a `budget` the schemes are those that fit it best, and the recipe says how to round. Without `held_out` every
    fifth sample of the calibration set is held out and the report says so.

    Raises:
        McpmqError: what can be refused is refused before a weight is read.
    """
    checkpoint = Checkpoint.open(source)
    calibrating, measuring = _sets(calibration, held_out)
    if recipe.looks and held_out:
        measuring.refuse_seen(calibrating.path.name, calibrating.fingerprints)
    if budget:
        recipe = _fitted(checkpoint, recipe, formats, budget, calibrating, settings)
    plan = make_plan(checkpoint, recipe)
    for name in formats:
        check(plan, name)

    quantized = quantize(plan, out / "quantized", calibrating, settings.progress, settings.device)
    artifacts = [export(quantized, name, out / name, settings.progress) for name in formats]

    report = compare(checkpoint, artifacts, measuring, settings, held_out_from_calibration=held_out is None)
    write_report(report, out)
    add_figures(report, artifacts)
    return report


def _fitted(
    checkpoint: Checkpoint,
    recipe: Recipe,
    formats: Sequence[FormatName],
    budget: Budget,
    samples: CalibrationSet,
    settings: Settings,
) -> Recipe:
    if len(formats) != 1:
        raise FormatError(
            f"a budget was given for {len(formats)} formats, and what fits one does not fit another",
            "name one format, and convert again for the other",
        )
    how = settings.threads, settings.progress, settings.device
    return fit(checkpoint, recipe, formats[0], budget, samples, *how).recipe


def _sets(calibration: Path, held_out: Path | None) -> tuple[CalibrationSet, CalibrationSet]:
    whole = CalibrationSet.open(calibration)
    return (whole, CalibrationSet.open(held_out)) if held_out else whole.split()
