"""Convert a checkpoint to evaluated artifacts: quantize, export, evaluate. Start reading here."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from mcpmq.artifact import Artifact, has_manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress
from mcpmq.compression_tables import NO_COMPRESSION, Compression
from mcpmq.conversion_folder import QUANTIZED, Target, make_targets, other_formats
from mcpmq.dataset import ReadOptions, SampleSet
from mcpmq.dataset.options import READ_ALL
from mcpmq.errors import DatasetError, FormatError, OutputError
from mcpmq.evaluate import Settings, calibration_warnings, evaluation_warnings
from mcpmq.export import export
from mcpmq.families.encoding import check_samples
from mcpmq.families.family import Processor
from mcpmq.formats import FORMATS, FormatName, check_plan, format_named
from mcpmq.formats.model_view import PlannedModel
from mcpmq.formats.recipes import FormatsByRecipe, load_recipes, with_compression
from mcpmq.formats.support import check_audio
from mcpmq.mixed_precision import Budget, search_recipe
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.report import JSON_FILE, Report, check_report_folder, compare
from mcpmq.report.evaluation import measure_and_write
from mcpmq.system.output import check_folder, check_output, lock_folder
from mcpmq.system.progress import begin_stages


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    formats: Sequence[FormatName],
    adapters: Sequence[str | Path] = (),
    calibration: str | Path | None = None,
    recipe: Recipe | str | None = None,
    bits: int | None = None,
    eval_set: str | Path | None = None,
    budget: Budget | None = None,
    settings: Settings | None = None,
    keep_quantized: bool = False,
    read_options: ReadOptions = READ_ALL,
    compression: Compression = NO_COMPRESSION,
) -> Report:
    """Quantize a checkpoint, export it to formats, and measure the artifacts against it. A killed run resumes.

    Args:
        checkpoint: Folder of a Hugging Face checkpoint, or a hub id: `owner/name` or `owner/name@revision`.
        out: Folder for one folder of every format, and the report. A quantized model that formats share, or that needs
            calibration, is in `quantized/`; with different recipes, also of earlier conversions, in `quantized-RECIPE`.
        adapters: Folders of LoRA adapters that PEFT saved, merged in this order into the checkpoint.
        formats: Formats to write; those of earlier conversions in `out` stay there.
        calibration: Calibration set; optional with an evaluation set, if no recipe needs calibration.
        recipe: A recipe, its name, or the path of its TOML file.
        bits: 4 or 8, short for the recommended recipe of each format.
        eval_set: Evaluation set; by default a fifth of every kind of calibration samples is held out.
        budget: Limit of size or memory; the scheme of every weight is then searched, and the recipe sets the method.
        settings: Threads, device, cache and progress; by default all cores, a GPU if there is one, no progress.
        keep_quantized: Write the quantized model also if one format needs it only once.
        read_options: Number of samples to draw from each set, and the seed.
        compression: Tables of structured compression instead of those of the recipe: tokens, and limits of images.

    Raises:
        McpmqError: an input is invalid, or a format does not support the recipe; raised before weights are read.
    """
    out, settings = Path(out), settings or Settings.from_options()
    recipes = with_compression(_load_recipes(recipe, bits, formats), compression)
    begin_stage = begin_stages(settings.progress, _stages(recipes, budget, keep_quantized))
    begin_stage()
    original = Checkpoint.open(checkpoint, settings.progress, adapters)
    inputs = _open_inputs(original, calibration, eval_set, read_options, recipes, searches=budget is not None)
    _check_outputs(out, formats, inputs.folders)
    inputs.check_audio(recipes)
    inputs.notify_warnings(recipes, settings)
    if budget:
        begin_stage()
        recipes = _search(inputs, recipes, formats, budget, settings)
    with ExitStack() as stack:
        plans = [_checked_plan(stack.enter_context(inputs.compressed(one[0], settings)), *one) for one in recipes]
        if not budget:  # else checked before the search
            inputs.check_evaluation_samples(settings)
        targets = make_targets(out, plans, recipes, inputs.calibration)
        _notify_other_formats(out, formats, settings)
        stack.enter_context(lock_folder(out))
        options = inputs.calibration, settings, begin_stage, keep_quantized
        artifacts = [one for each in targets for one in _export(each, *options)]
        begin_stage()
        return measure_and_write(inputs.measurement_of(artifacts, settings), out, artifacts)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The checkpoint and the sample sets of a conversion."""

    checkpoint: Checkpoint
    processor: Processor
    calibration: SampleSet | None
    evaluation: SampleSet
    held_out: bool  # the evaluation set is a part of the calibration set

    @property
    def folders(self) -> dict[Path, str]:
        """The folders that outputs must not be written to."""
        folders = self.checkpoint.folders | {self.evaluation.path: "evaluation set"}
        return folders | ({self.calibration.path: "calibration set"} if self.calibration else {})

    def compressed(self, recipe: Recipe, settings: Settings) -> AbstractContextManager[Checkpoint]:
        """Return a context with the checkpoint of a recipe: the original, unless the recipe compresses it."""
        return compress(self.checkpoint, recipe, self.calibration, settings.progress)

    def notify_warnings(self, recipes: FormatsByRecipe, settings: Settings) -> None:
        """Notify of invalid records, and of sets that are too small for a calibration or a measurement."""
        for opened in filter(None, (self.calibration, self.evaluation)):
            if opened.left_out_warning:
                settings.notify(opened.left_out_warning)
        if self.calibration and any(recipe.needs_calibration for recipe, _ in recipes):
            for text in calibration_warnings(self.calibration):
                settings.notify(text)
        for text in evaluation_warnings(self.evaluation):
            settings.notify(text)

    def check_audio(self, recipes: FormatsByRecipe) -> None:
        """Check that every format has an audio encoder if a sample to measure has audio.

        Raises:
            DatasetError: one has none.
        """
        for recipe, names in recipes:
            for name in names:
                check_audio(self.checkpoint.family, name, recipe.to_dict(), self.evaluation)

    def check_evaluation_samples(self, settings: Settings) -> None:
        """Check that every sample of the evaluation set can be measured.

        Raises:
            DatasetError: the family cannot encode a sample.
        """
        check_samples(self.processor, self.evaluation.samples, settings.progress)

    def measurement_of(self, artifacts: Sequence[Artifact], settings: Settings) -> Callable[[], Report]:
        """Return a function that measures the artifacts."""
        return partial(
            compare,
            self.checkpoint,
            artifacts,
            self.evaluation,
            settings,
            held_out_from_calibration=self.held_out,
            calibration=None if self.held_out else self.calibration,
        )


def _is_one_pass(recipe: Recipe, formats: Collection[FormatName], keep_quantized: bool) -> bool:
    """Return whether a format is written without a quantized model."""
    return len(formats) == 1 and not recipe.needs_calibration and not keep_quantized


def _stages(recipes: FormatsByRecipe, budget: Budget | None, keep_quantized: bool) -> list[str]:
    """Return the stages of a conversion."""
    steps = [
        [f"writing {names[0]} with {recipe.name}"]
        if _is_one_pass(recipe, names, keep_quantized)
        else [f"quantizing with {recipe.name}", *(f"writing {name}" for name in names)]
        for recipe, names in recipes
    ]
    return ["checking inputs", *["searching"] * bool(budget), *chain.from_iterable(steps), "evaluating"]


def _export(
    target: Target, calibration: SampleSet | None, settings: Settings, begin_stage: Callable[[], None], keep: bool
) -> Iterator[Artifact]:
    """Quantize a plan, and yield its artifact in every format; an existing quantized model is used."""
    begin_stage()
    is_one_pass = _is_one_pass(target.plan.recipe, target.formats, keep)
    if is_one_pass and not target.has_quantized:
        [(name, folder)] = target.formats.items()
        yield convert_in_one_pass(target.plan, name, folder, settings.progress)
        return
    options = settings.progress, settings.device, settings.notify, settings.memory_limit
    quantized = quantize(target.plan, target.quantized, calibration, *options)
    for name, folder in target.formats.items():
        if not is_one_pass:
            begin_stage()
        yield export(quantized, name, folder, settings.progress)


def _checked_plan(checkpoint: Checkpoint, recipe: Recipe, formats: Sequence[FormatName]) -> Plan:
    """Return a plan that all formats can store, with a tokenizer and settings that they can convert."""
    plan = make_plan(checkpoint, recipe)
    for name in formats:
        check_plan(plan, name)
        format_named(name).forecast(PlannedModel(plan))
    return plan


def _notify_other_formats(out: Path, formats: Sequence[FormatName], settings: Settings) -> None:
    if others := ", ".join(map(str, other_formats(out, formats))):
        settings.notify(f"not in this report: {others} of an earlier run; `mcpmq evaluate` measures them together")


def _load_recipes(recipe: Recipe | str | None, bits: int | None, formats: Sequence[FormatName]) -> FormatsByRecipe:
    if unknown := [name for name in formats if name not in FORMATS]:
        raise FormatError(f"`{unknown[0]}` is not a format", f"give one of: {', '.join(FORMATS)}")
    return load_recipes(recipe, bits, formats)


def _check_outputs(out: Path, formats: Sequence[str], inputs: Mapping[Path, str]) -> None:
    """Check that the folder is missing, empty, or of an earlier conversion, and that every output can be written."""
    if not check_folder(out, inputs):
        return
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    is_quantized = any(name.startswith(QUANTIZED) for name in names)
    if names and not is_quantized and not names & {*FORMATS, JSON_FILE}:
        raise OutputError(f"`{out}` is not empty and has no output of mcpmq: `{min(names)}`", "give another folder")
    check_report_folder(out, inputs)
    for name in (QUANTIZED, *formats):
        if not has_manifest(out / name):
            check_output(out / name)


def _search(
    inputs: _Inputs, recipes: FormatsByRecipe, formats: Sequence[FormatName], budget: Budget, settings: Settings
) -> FormatsByRecipe:
    """Return the recipe with the scheme of every weight that the search has found, for the only format."""
    inputs.check_evaluation_samples(settings)
    if len(formats) != 1:
        raise FormatError(
            f"{len(formats)} formats are given with a budget; a budget applies to one format",
            "give one format, and convert again for the other",
        )
    assert inputs.calibration is not None
    options = settings.threads, settings.progress, settings.first_device
    [(recipe, names)] = recipes
    with inputs.compressed(recipe, settings) as compressed:
        found = search_recipe(compressed, recipe, formats[0], budget, inputs.calibration, *options)
    return [(found.recipe, names)]


def _open_inputs(
    checkpoint: Checkpoint,
    calibration: str | Path | None,
    eval_set: str | Path | None,
    read_options: ReadOptions,
    recipes: FormatsByRecipe,
    *,
    searches: bool,
) -> _Inputs:
    opened = checkpoint, checkpoint.family.open_processor(checkpoint.path)
    calibrated = [recipe.name for recipe, _ in recipes if recipe.needs_calibration]
    if calibration is None:
        if calibrated or searches:
            reason = "a search" if searches else f"the recipe `{calibrated[0]}`"
            raise DatasetError(f"{reason} needs a calibration set", "give one with `--calibration`")
        if eval_set is None:
            raise DatasetError("neither a calibration set nor an evaluation set is given", "give `--eval-set`")
        return _Inputs(*opened, None, SampleSet.open(eval_set, read_options), held_out=False)
    calibration_set = SampleSet.open(calibration, read_options)
    if eval_set is None:
        return _Inputs(*opened, *calibration_set.split_holdout(), held_out=True)
    evaluation_set = SampleSet.open(eval_set, read_options)
    if calibrated:
        evaluation_set.check_disjoint(calibration_set.name, calibration_set.fingerprints)
    return _Inputs(*opened, calibration_set, evaluation_set, held_out=False)
