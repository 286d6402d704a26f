"""The samples that a plan needs, and the inputs that a weight needs from them."""

from mcpmq.calibrate.modalities import encoder_modality
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError
from mcpmq.families.family import TensorSpec
from mcpmq.plan import Plan, TensorPlan
from mcpmq.rounding.stats import AUDIO, VISION, InputStats


def needs_calibration(plan: Plan, tensor: TensorPlan) -> bool:
    """Return whether a weight's codes, smoothing scales or activation range depend on calibration samples."""
    calibrated = plan.recipe.method != "rtn" or tensor.name in plan.smoothed_weights or tensor.has_input_range
    return calibrated and tensor.is_quantized and tensor.spec.role == "matrix"


def require_calibration(plan: Plan, calibration: SampleSet | None) -> tuple[Sample, ...]:
    """Return the samples that a plan needs, none if no weight needs calibration.

    Raises:
        DatasetError: the plan needs a calibration set and none was given; it quantizes weights that only process
            images or audio and no sample has one; or it selects methods on held-out samples and there are too few.
    """
    calibrated = [tensor for tensor in plan.tensors if needs_calibration(plan, tensor)]
    if not calibrated:
        return ()
    if calibration is None:
        raise DatasetError(
            f"recipe `{plan.recipe.name}` needs calibration for {len(calibrated)} weights, and no calibration set was"
            " given",
            "pass a directory of images and questions with `--calibration`",
        )
    present = {
        VISION: any(sample.has_vision for sample in calibration),
        AUDIO: any(sample.audio for sample in calibration),
    }
    for tensor in calibrated:
        if not present.get(encoder_modality(tensor.spec.component), True):
            raise no_tokens_error(tensor.name, len(calibration))
    if plan.recipe.selects_per_block:
        _check_held_out([sample.has_vision for sample in calibration])
    return calibration.samples


def _check_held_out(has_image: list[bool]) -> None:
    for value, kind in ((True, "image"), (False, "text-only")):
        if has_image.count(value) == 1:
            raise DatasetError(
                f"the calibration set has only one {kind} sample; at least two are needed because one is held out",
                f"add another {kind} sample, or remove this one",
            )


def check_stats(spec: TensorSpec, parts: tuple[InputStats, ...], samples: int) -> None:
    """Check that a weight received tokens of this number of samples.

    Raises:
        DatasetError: it received none, only tokens of weight zero, or inputs that are not finite.
    """
    check_finite(spec, parts)
    if not has_tokens(parts):
        raise no_tokens_error(spec.name, samples)


def has_tokens(parts: tuple[InputStats, ...]) -> bool:
    """Return whether a weight received tokens of a weight above zero."""
    return bool(parts) and all(part.total_weight > 0 for part in parts)


def check_finite(spec: TensorSpec, parts: tuple[InputStats, ...]) -> None:
    """Raise DatasetError if an input of a weight is infinite or NaN."""
    if not all(part.gram.diagonal().isfinite().all() for part in parts):
        raise nonfinite_error(spec.name)


def no_tokens_error(name: str, samples: int) -> DatasetError:
    """Return the error for a weight without inputs."""
    return DatasetError(
        f"`{name}` receives no token of the {samples} calibration samples, or only tokens of weight 0",
        f'add samples that use it, or write `"{name}" = "keep"` last in the recipe',
    )


def nonfinite_error(name: str) -> DatasetError:
    """Return the error for a weight with inputs that are infinite or NaN."""
    return DatasetError(f"the inputs of `{name}` are not finite", "the checkpoint overflows on a sample or is damaged")
