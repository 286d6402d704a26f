"""The most accurate mix of schemes that fits a size or a memory, over all components together."""

from collections.abc import Mapping, Sequence

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet, Sample
from mcpmq.errors import RecipeError
from mcpmq.execution.device import choose
from mcpmq.families.family import TensorSpec
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.budget import Budget, Fitted
from mcpmq.mixed_precision.candidates import candidates, refuse_one_grid
from mcpmq.mixed_precision.knapsack import Option
from mcpmq.mixed_precision.layer_error import damages, unseen_by_samples
from mcpmq.mixed_precision.search import Search
from mcpmq.mixed_precision.sensitivity import sensitivities
from mcpmq.recipe import Recipe
from mcpmq.rounding import RounderName
from mcpmq.scheme import Scheme
from mcpmq.system.progress import Progress

__all__ = ["Budget", "Fitted", "fit"]

SEEN_SAMPLES, DAMAGED_SAMPLES = 48, 24  # of the calibration set, evenly spread


def fit(
    checkpoint: Checkpoint,
    base: Recipe,
    name: FormatName,
    budget: Budget,
    calibration: CalibrationSet,
    threads: int,
    progress: Progress,
    device: str | None = None,
) -> Fitted:
    """Find the scheme of every weight; how it is rounded, smoothed and weighed stays as in `base`. Errors are told from
    samples that pass on the `device` of that name, or on the one that is chosen for them.

    Raises:
        FormatError: the format holds no mix.
        RecipeError: nothing is small enough, and how small the smallest is.
        CalibrationError: a weight sees nothing of the calibration set.
    """
    refuse_one_grid(name)
    if base.activations:
        raise RecipeError(
            f"recipe `{base.name}` rounds inputs, which needs `int8-row` where it does", "fit without [activations]"
        )
    schemes = {spec.name: candidates(checkpoint, spec, name) for spec in checkpoint.specs if spec.role != "other"}
    search = Search(checkpoint, base, name, budget)
    sizes = search.sizes(schemes)
    smallest = search.refuse_hopeless(sizes)
    losses = losses_of(checkpoint, schemes, base, calibration, threads, progress, device)
    options = {
        weight: [Option(scheme, nbytes, losses[weight][scheme]) for scheme, nbytes in several.items()]
        for weight, several in sizes.items()
    }
    origin = f"{calibration.path.resolve().name}, SHA-256 {calibration.sha256}"
    return search.best(options, smallest, origin)


def losses_of(
    checkpoint: Checkpoint,
    schemes: Mapping[str, Sequence[Scheme | None]],
    base: Recipe,
    calibration: CalibrationSet,
    threads: int,
    progress: Progress,
    device: str | None = None,
) -> dict[str, dict[str, float]]:
    """The divergence of an answer token that is expected of every weight on every scheme alone, in nats.

    Errors grow with the square of what rounding changes, and so does the divergence while it is small: that of a whole
    block on one scheme is measured, shared out among its weights, and scaled by their errors on the other schemes.

    Raises:
        CalibrationError: a weight sees nothing of the calibration set.
    """
    chosen = choose(device)
    method: RounderName = "gptq" if base.round == "best" else base.round  # what chooses is tried with one
    damage = damages(checkpoint, schemes, method, _spread(calibration, SEEN_SAMPLES), progress, chosen)
    if unseen := [weight for weight in schemes if weight not in damage]:
        raise unseen_by_samples(unseen[0])
    blocks: dict[str, list[TensorSpec]] = {}
    for spec in checkpoint.specs:
        if spec.name in damage:
            blocks.setdefault(damage[spec.name].block, []).append(spec)
    whole = sensitivities(checkpoint, blocks, _spread(calibration, DAMAGED_SAMPLES), threads, progress)
    return {
        weight: {scheme: whole[one.block] * one.share * error for scheme, error in one.errors.items()}
        for weight, one in damage.items()
    }


def _spread(calibration: CalibrationSet, count: int) -> Sequence[Sample]:
    """So many samples, evenly spread."""
    samples = calibration.samples
    return samples[:: max(1, len(samples) // count)][:count]
