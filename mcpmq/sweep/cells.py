"""The cells of a sweep, decided from headers before the work: their names, memory forecasts and refusals."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mcpmq.artifact import FormatName
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress
from mcpmq.dataset import ReadOptions, SampleSet
from mcpmq.errors import DatasetError, FormatError, MissingExtra, RecipeError, SweepError
from mcpmq.evaluate import calibration_warnings, evaluation_warnings
from mcpmq.plan import Plan, make_plan
from mcpmq.recipe import Recipe
from mcpmq.sweep.memory import MemoryForecast, forecast_memory
from mcpmq.sweep.request import SetRequest
from mcpmq.sweep.sweep_file import Combination, SweepFile
from mcpmq.system.environment import ARTIFACT_PACKAGES, MODEL_PACKAGES, installed_versions
from mcpmq.system.progress import Notify, Progress, ignore_notice

NAME_DIGITS = 16  # of the SHA-256 of the inputs
ENGINE_PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "bitsandbytes", "compressed-tensors")
DEFAULT_CONTEXT = 4096  # tokens, of the forecast of an engine's memory


@dataclass(frozen=True, slots=True)
class Cell:
    """One artifact and its measurement. Equal inputs have equal names, on every machine.

    quantized: the name of its quantized model, which cells of other formats share.
    problem: the reason why the format cannot store the recipe; such a cell is not run.
    """

    name: str
    quantized: str
    combination: Combination
    recipe: Recipe
    checkpoint_sha256: str
    calibration: SetRequest | None
    evaluation: SetRequest
    memory: MemoryForecast
    problem: str = ""

    @property
    def format(self) -> FormatName:
        return self.combination.format

    @property
    def label(self) -> str:
        """Recipe, format, and the draw of the calibration samples, if they decide the cell."""
        words = [f"{self.recipe.name} {self.format}"]
        if self.calibration:
            one = self.combination
            words += [Path(self.calibration.path).name] + [f"{one.samples} samples, seed {one.seed}"] * bool(
                one.samples
            )
        return ", ".join(words)


@dataclass(slots=True)
class _Opened:
    """Inputs that several cells share, each opened once."""

    file: SweepFile
    progress: Progress
    device: str | None
    notify: Notify
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    sets: dict[tuple[str, int | None, int], SampleSet] = field(default_factory=dict)
    plans: dict[str, tuple[Plan | None, str]] = field(default_factory=dict)  # by quantized model; None with a problem

    def checkpoint(self, name: str) -> Checkpoint:
        if name not in self.checkpoints:
            self.checkpoints[name] = Checkpoint.open(name, self.progress)
        return self.checkpoints[name]

    def samples(self, path: str, count: int | None, seed: int) -> SampleSet:
        if (key := (path, count, seed)) not in self.sets:
            self.sets[key] = SampleSet.open(path, ReadOptions(count, seed, skip_invalid=True))
            self._notify_warnings(self.sets[key], path == self.file.eval_set)
        return self.sets[key]

    def _notify_warnings(self, samples: SampleSet, is_evaluation: bool) -> None:
        warnings = evaluation_warnings(samples) if is_evaluation else calibration_warnings(samples)
        for text in filter(None, (samples.left_out_warning, *warnings)):
            self.notify(text)

    def request(self, path: str, count: int | None, seed: int) -> SetRequest:
        return SetRequest(path=path, samples=count, seed=seed, sha256=self.samples(path, count, seed).sha256)


def decide_cells(
    file: SweepFile, progress: Progress, device: str | None = None, notify: Notify = ignore_notice
) -> list[Cell]:
    """Return the cells of a sweep, each once: combinations with equal inputs are one cell.

    Everything that can be refused is refused here, before a weight is read. `device` is that of calibrations; `notify`
    gets the warnings about sample sets.

    Raises:
        SweepError: no format of the sweep can store any recipe.
        McpmqError: a checkpoint, a recipe, a set, or a sample of a set that the family cannot encode.
    """
    opened = _Opened(file, progress, device, notify)
    recipes = {name: Recipe.load(name) for name in file.recipes}
    combinations = list(file.combinations())
    cells: dict[str, Cell] = {}
    for one in progress(combinations, "planning cells"):
        cell = _cell(opened, one, recipes[one.recipe])
        cells.setdefault(cell.name, cell)
    if all(cell.problem for cell in cells.values()):
        first = next(iter(cells.values()))
        raise SweepError(f"no cell of the sweep can be run: {first.label}: {first.problem}", "see `mcpmq recipes`")
    return list(cells.values())


def _cell(opened: _Opened, one: Combination, recipe: Recipe) -> Cell:
    checkpoint, calibration = opened.checkpoint(one.checkpoint), _calibration(opened, one, recipe)
    evaluation = opened.request(opened.file.eval_set, opened.file.eval_samples, 0)
    if calibration:
        used = opened.samples(calibration.path, calibration.samples, calibration.seed)
        opened.samples(evaluation.path, evaluation.samples, 0).check_disjoint(used.name, used.fingerprints)
    quantized = _quantized_name(checkpoint, recipe, calibration, opened.device)
    plan, problem = _plan(opened, quantized, checkpoint, recipe, calibration)
    samples = len(opened.samples(calibration.path, calibration.samples, calibration.seed)) if calibration else 0
    memory = MemoryForecast()
    if plan:
        try:
            memory = forecast_memory(plan, one.format, samples, DEFAULT_CONTEXT)
        except MissingExtra:
            raise
        except FormatError as error:
            problem = str(error)
    inputs = [quantized, one.format, evaluation.sha256, installed_versions(ENGINE_PACKAGES)]
    checkpoint_sha256 = checkpoint.sha256
    return Cell(_hash(inputs), quantized, one, recipe, checkpoint_sha256, calibration, evaluation, memory, problem)


def _calibration(opened: _Opened, one: Combination, recipe: Recipe) -> SetRequest | None:
    """Return the calibration set if it decides the bytes of the quantized model."""
    if not (recipe.needs_calibration or recipe.vocabulary):
        return None
    if one.calibration is None:
        if recipe.needs_calibration:
            hint = "name one with `calibration` in the sweep file"
            raise DatasetError(f"the recipe `{recipe.name}` needs a calibration set", hint)
        return None
    return opened.request(one.calibration, one.samples, one.seed)


def _plan(
    opened: _Opened, name: str, checkpoint: Checkpoint, recipe: Recipe, calibration: SetRequest | None
) -> tuple[Plan | None, str]:
    """Return a plan, or the reason why the recipe does not fit the checkpoint."""
    if name not in opened.plans:
        samples = opened.samples(calibration.path, calibration.samples, calibration.seed) if calibration else None
        try:
            with compress(checkpoint, recipe, samples, opened.progress) as compressed:
                opened.plans[name] = make_plan(compressed, recipe), ""
        except RecipeError as error:
            opened.plans[name] = None, str(error)
    return opened.plans[name]


def _quantized_name(checkpoint: Checkpoint, recipe: Recipe, calibration: SetRequest | None, device: str | None) -> str:
    """Return the hash of everything that decides the bytes of a quantized model, except the kind of processor."""
    texts = {file.name: file.sha256 for file in checkpoint.text_files}
    packages = (*ARTIFACT_PACKAGES, *MODEL_PACKAGES) if recipe.needs_calibration else ARTIFACT_PACKAGES
    used = calibration and calibration.sha256
    return _hash([checkpoint.sha256, texts, recipe.to_dict(), used, device, installed_versions(packages)])


def _hash(inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:NAME_DIGITS]


def runnable(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Yield the cells whose format can store their recipe."""
    yield from (cell for cell in cells if not cell.problem)
