"""Search the scheme of every weight that minimizes the estimated loss under a size or memory limit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mcpmq.calibrate.read_importance import read_importance
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import RecipeError
from mcpmq.execution.device import resolve_device
from mcpmq.families.encoding import check_samples
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.budget import Budget, SearchResult
from mcpmq.mixed_precision.candidates import candidate_schemes, check_mixed_format
from mcpmq.mixed_precision.knapsack import NO_REMOVALS, Option, Removals
from mcpmq.mixed_precision.layer_error import no_inputs_error, quantization_errors
from mcpmq.mixed_precision.layer_removal import open_meter
from mcpmq.mixed_precision.relative_error import importance_losses
from mcpmq.mixed_precision.removal_choice import measure_choices
from mcpmq.mixed_precision.search import HEADER, RecipeSearch
from mcpmq.mixed_precision.sensitivity import block_sensitivities
from mcpmq.recipe import Recipe
from mcpmq.rounding import RoundingMethod
from mcpmq.scheme import Scheme
from mcpmq.system.output import check_file, lock_output
from mcpmq.system.progress import Progress, begin_stages

__all__ = ["Budget", "SearchResult", "recipe_file", "search_recipe", "search_with_imatrix"]
CandidateSchemes = Mapping[str, Sequence[Scheme | None]]  # by weight
WeightLosses = Mapping[str, Mapping[str, float]]  # by weight and scheme

ERROR_SAMPLES, SENSITIVITY_SAMPLES = 48, 24  # evenly spread over the calibration set


@contextmanager
def recipe_file(out: Path, inputs: Mapping[Path, str]) -> Iterator[None]:
    """Hold the lock of a recipe file, which may be missing or of an earlier search.

    Raises:
        OutputError: the file is another one or inside of an input, or another process writes it.
    """
    check_file(out, inputs, f"# {HEADER}")
    with lock_output(out):
        yield


def search_recipe(
    checkpoint: Checkpoint,
    base: Recipe,
    format_name: FormatName,
    budget: Budget,
    calibration: SampleSet,
    threads: int,
    progress: Progress,
    device: str | None = None,
    max_removed: int = 0,
) -> SearchResult:
    """Search the schemes of all weights; the method, smoothing and token weights are those of `base`.

    At most `max_removed` layers are removed, where that loses less than fewer bits elsewhere. Errors are
    measured on the calibration set, on a device as in `resolve_device`.

    Raises:
        FormatError: the format stores all weights on one scheme.
        RecipeError: `base` quantizes activations, or the smallest possible result exceeds the budget.
        DatasetError: a sample cannot be encoded, or a weight receives no token of the calibration set.
        DeviceError: the device is not available.
    """

    def losses(schemes: CandidateSchemes) -> WeightLosses:
        begin_stage = begin_stages(progress, ["checking samples", "measuring layer errors", "measuring sensitivity"])
        begin_stage()
        check_samples(checkpoint.family.open_processor(checkpoint.path), calibration.samples, progress)
        return estimate_losses(checkpoint, schemes, base, calibration, threads, progress, device, begin_stage)

    source = f"{calibration.name}, SHA-256 {calibration.sha256}"
    search = RecipeSearch(checkpoint, base, format_name, budget)
    if not max_removed:
        return _search(search, losses, source)
    samples = calibration.spread(SENSITIVITY_SAMPLES)
    with open_meter(checkpoint, samples, threads, progress, device) as meter:
        names = [spec.name for spec in checkpoint.specs if spec.role != "other"]
        result = _search(search, losses, source, measure_choices(meter, names, max_removed, progress))
        layers = meter.table(result.removed) if result.removed else None
    return replace(result, recipe=result.recipe.model_copy(update={"layers": layers}))


def search_with_imatrix(
    checkpoint: Checkpoint, base: Recipe, format_name: FormatName, budget: Budget, imatrix: Path, progress: Progress
) -> SearchResult:
    """Search the schemes of all weights from an importance matrix, without a forward pass; see `relative_error`.

    It takes minutes and little memory for models on which `search_recipe` takes hours.

    Raises:
        FormatError: the format stores all weights on one scheme.
        RecipeError: `base` quantizes activations, or the smallest possible result exceeds the budget.
        ArtifactError: `imatrix` is not an importance matrix of the checkpoint.
        DatasetError: the importance matrix has no inputs of a weight.
    """
    importance = read_importance(imatrix, checkpoint)

    def losses(schemes: CandidateSchemes) -> WeightLosses:
        return importance_losses(checkpoint, schemes, base.method != "rtn", importance, progress)

    return _search(RecipeSearch(checkpoint, base, format_name, budget), losses, importance.source)


def _search(
    search: RecipeSearch,
    losses: Callable[[CandidateSchemes], WeightLosses],
    source: str,
    removals: Removals = NO_REMOVALS,
) -> SearchResult:
    """Check the budget, then estimate the losses and choose the schemes."""
    checkpoint, format_name = search.checkpoint, search.format_name
    check_mixed_format(format_name, checkpoint.architecture.language)
    if search.base.activations:
        raise RecipeError(
            f"recipe `{search.base.name}` quantizes activations, which needs `int8-row` weights",
            "remove [activations] from the recipe",
        )
    schemes = {
        spec.name: candidate_schemes(checkpoint, spec, format_name) for spec in checkpoint.specs if spec.role != "other"
    }
    sizes = search.sizes(schemes)
    smallest = search.check_budget(sizes)
    found = losses(schemes)
    options = {
        weight: [Option(scheme, nbytes, found[weight][scheme]) for scheme, nbytes in by_scheme.items()]
        for weight, by_scheme in sizes.items()
    }
    return search.solve(options, smallest, source, removals)


def estimate_losses(
    checkpoint: Checkpoint,
    schemes: CandidateSchemes,
    base: Recipe,
    calibration: SampleSet,
    threads: int,
    progress: Progress,
    device: str | None = None,
    begin_stage: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Estimate the mean KLD in nats for each weight and scheme, with all other weights unquantized.

    Quantization error and KLD both grow with the square of a small change. The KLD of each block is measured on one
    scheme, divided among its weights, and scaled by their errors on the other schemes.

    Raises:
        DatasetError: a weight receives no token of the calibration set.
    """
    method: RoundingMethod = "gptq" if base.method == "auto" else base.method  # one method stands for the selection
    samples = _spread(calibration, ERROR_SAMPLES)
    begin_stage()
    torch_device = resolve_device(device, checkpoint.nbytes)
    errors = quantization_errors(checkpoint, schemes, method, samples, progress, torch_device)
    if missing := [weight for weight in schemes if weight not in errors]:
        raise no_inputs_error(missing[0])
    blocks: dict[str, list[TensorSpec]] = {}
    for spec in checkpoint.specs:
        if spec.name in errors:
            blocks.setdefault(errors[spec.name].block, []).append(spec)
    samples = _spread(calibration, SENSITIVITY_SAMPLES)
    begin_stage()
    sensitivities = block_sensitivities(checkpoint, blocks, samples, threads, progress)
    return {
        weight: {scheme: sensitivities[one.block] * one.share * error for scheme, error in one.errors.items()}
        for weight, one in errors.items()
    }


def _spread(calibration: SampleSet, count: int) -> Sequence[Sample]:
    """Return at most `count` samples, evenly spread."""
    samples = calibration.samples
    return samples[:: max(1, len(samples) // count)][:count]
