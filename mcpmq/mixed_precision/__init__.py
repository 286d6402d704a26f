"""Search the scheme of every weight that minimizes the estimated loss under a size or memory limit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mcpmq.calibrate.read_importance import read_importance
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.execution.device import resolve_device
from mcpmq.families.encoding import check_samples
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.budget import Budget
from mcpmq.mixed_precision.compression_cost import CostMeter
from mcpmq.mixed_precision.layer_error import no_inputs_error, quantization_errors
from mcpmq.mixed_precision.prepared import CandidateSchemes, PreparedSearch, WeightLosses, prepare
from mcpmq.mixed_precision.relative_error import importance_losses
from mcpmq.mixed_precision.result import SearchResult
from mcpmq.mixed_precision.search import HEADER, RecipeSearch
from mcpmq.mixed_precision.sensitivity import block_sensitivities, joint_divergence
from mcpmq.mixed_precision.structure import NO_STRUCTURE, Structure
from mcpmq.mixed_precision.structured_search import prepare_structured
from mcpmq.recipe import Recipe
from mcpmq.rounding import RoundingMethod
from mcpmq.system.output import check_file, lock_output
from mcpmq.system.progress import Progress, begin_stages

__all__ = [
    "Budget",
    "SearchResult",
    "Structure",
    "prepare_search",
    "recipe_file",
    "search_recipe",
    "search_with_imatrix",
]

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
    structure: Structure = NO_STRUCTURE,
) -> SearchResult:
    """Search the schemes of all weights; the method, smoothing and token weights are those of `base`.

    Layers are removed, images limited and tokens removed as `structure` permits, where that loses less than fewer bits
    elsewhere. Errors are measured on the calibration set, on a device as in `resolve_device`.

    Raises:
        FormatError: the format stores all weights on one scheme.
        RecipeError: `base` quantizes activations, choices are not valid, or the smallest possible result exceeds the
            budget.
        CheckpointError: the tokenizer cannot be trimmed.
        DatasetError: a sample cannot be encoded, a weight receives no token of the calibration set, or the loss of a
            choice cannot be measured on it.
        DeviceError: the device is not available.
    """
    inputs = checkpoint, base, format_name, budget, calibration
    with prepare_search(*inputs, threads, progress, device, structure) as prepared:
        return replace(prepared.best(), front=prepared.front())


@contextmanager
def prepare_search(
    checkpoint: Checkpoint,
    base: Recipe,
    format_name: FormatName,
    budget: Budget,
    calibration: SampleSet,
    threads: int,
    progress: Progress,
    device: str | None = None,
    structure: Structure = NO_STRUCTURE,
) -> Iterator[PreparedSearch]:
    """Measure the losses of a search as `search_recipe`; the search is valid inside of the `with` block."""
    labels = ["checking samples", "measuring layer errors", "measuring sensitivity"]
    begin_stage = begin_stages(progress, [*labels, *["measuring structured compression"] * bool(structure)])
    structured = bool(structure)

    def losses(schemes: CandidateSchemes) -> WeightLosses:
        begin_stage()
        check_samples(checkpoint.family.open_processor(checkpoint.path), calibration.samples, progress)
        options = threads, progress, device, begin_stage
        return estimate_losses(checkpoint, schemes, base, calibration, *options, absolute=structured)

    source = f"{calibration.name}, SHA-256 {calibration.sha256}"
    search = RecipeSearch(checkpoint, base, format_name, budget)
    if not structured:
        yield prepare(search, losses, source)
        return
    meter = CostMeter(checkpoint, calibration, threads, progress, device)
    with prepare_structured(search, losses, structure, meter, source, begin_stage) as prepared:
        yield prepared


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

    prepared = prepare(RecipeSearch(checkpoint, base, format_name, budget), losses, importance.source)
    return replace(prepared.best(), front=prepared.front())


def estimate_losses(
    checkpoint: Checkpoint,
    schemes: CandidateSchemes,
    base: Recipe,
    calibration: SampleSet,
    threads: int,
    progress: Progress,
    device: str | None = None,
    begin_stage: Callable[[], None] = lambda: None,
    *,
    absolute: bool = False,
) -> dict[str, dict[str, float]]:
    """Estimate the mean KLD in nats for each weight and scheme, with all other weights unquantized.

    Quantization error and KLD both grow with the square of a small change. The KLD of each block is measured on one
    scheme, divided among its weights, and scaled by their errors on the other schemes. `absolute` losses, which are
    compared with measured ones, are scaled so that their sum is the KLD with all blocks on that scheme: the errors of
    blocks add up to more than the sum of their divergences.

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
    factor = 1.0
    if absolute:
        joint = joint_divergence(checkpoint, blocks, samples, threads, progress)
        factor = joint / sum(sensitivities.values())
    return {
        weight: {scheme: factor * sensitivities[one.block] * one.share * error for scheme, error in one.errors.items()}
        for weight, one in errors.items()
    }


def _spread(calibration: SampleSet, count: int) -> Sequence[Sample]:
    """Return at most `count` samples, evenly spread."""
    samples = calibration.samples
    return samples[:: max(1, len(samples) // count)][:count]
