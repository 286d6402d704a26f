"""Estimate the time of a calibration on the CPU from its products of matrices and their measured rates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mcpmq.dataset import (
    ENCODER_INPUTS_PER_COLUMN,
    MIN_ENCODER_INPUTS,
    RECOMMENDED_CALIBRATION_TOKENS,
    TOKENS_PER_SAMPLE,
)
from mcpmq.families.inputs import Inputs
from mcpmq.families.residual import stream_reader
from mcpmq.formats.image_tokens import image_tokens
from mcpmq.plan import Plan, TensorPlan

# Operations per second on two cores: 0.6 of those of the stages alone (benchmarks/results/stages.json), because a
# calibration selects shrinkages and compares roundings as well. Rounding is for each row and pair of columns.
FORWARD_RATE, GRAM_RATE, FACTOR_RATE, ROUNDING_RATE = 130e9, 130e9, 90e9, 45e9
# Whole passes through a block by the targets of GPTQ: of the samples that calibrate it, and of all samples afterwards;
# and passes that end earlier, each with the overhead of one sample.
PASSES, STARTED_PASSES, OVERHEAD_SECONDS = {"layer": (1, 1), "model": (3, 2)}, {"layer": 2, "model": 10}, 0.003
SHARED_INPUTS = (".k", ".v", "mlp.up")  # matrices with the input of another one
VISION_PARTS, AUDIO_PARTS = ("vision", "projector"), ("audio", "audio_projector")
IMAGE_SHARE = 0.5  # of the recommended tokens, without a calibration set


@dataclass(frozen=True, slots=True)
class CalibrationTokens:
    """The inputs of a calibration: tokens of the language model, inputs of the encoders, and samples."""

    language: int
    patches: int = 0  # of the vision encoder
    samples: int = 0
    audio_frames: int = 0

    @classmethod
    def of_samples(cls, inputs: Iterable[Inputs], patch_size: int) -> "CalibrationTokens":
        """Count those of encoded samples; `patch_size` is in pixels, 0 without a vision encoder."""
        language = patches = samples = audio_frames = 0
        for one in inputs:
            samples += 1
            language += len(one.tokens)
            patches += one.num_patches(patch_size)
            audio_frames += one.num_audio_frames
        return cls(language, patches, samples, audio_frames)

    @classmethod
    def recommended(cls, plan: Plan) -> "CalibrationTokens":
        """Return the recommended number of tokens, half of them of images if there is a vision encoder; no audio."""
        vision, images = plan.checkpoint.architecture.vision, image_tokens(plan.checkpoint)
        tokens, samples = RECOMMENDED_CALIBRATION_TOKENS, RECOMMENDED_CALIBRATION_TOKENS // TOKENS_PER_SAMPLE
        if vision is None or not images:
            return cls(tokens, 0, samples)
        image = images[0]
        per_token = image.width * image.height / vision.patch_size**2 / image.tokens
        return cls(tokens, int(IMAGE_SHARE * tokens * per_token), samples)


def calibration_seconds(plan: Plan, tokens: CalibrationTokens) -> float:
    """Estimate the seconds of forward passes, Hessians, factors and rounding over all blocks, on two cores.

    Weights that are not calibrated take part in the forward passes only; experts receive their share of the tokens.
    """
    passes = STARTED_PASSES["model" if plan.recipe.has_model_targets else "layer"]
    overhead = OVERHEAD_SECONDS * tokens.samples * passes * len(plan.blocks)
    return overhead + sum(_block_seconds(plan, block, tokens) for block in plan.blocks.values())


def _block_seconds(plan: Plan, block: Sequence[TensorPlan], tokens: CalibrationTokens) -> float:
    names = {tensor.name for tensor in block}
    matrices = [tensor for tensor in block if tensor.spec.role == "matrix"]
    columns = max((one.matrix_shape[1] for one in matrices), default=0)
    limit = max(MIN_ENCODER_INPUTS, ENCODER_INPUTS_PER_COLUMN * columns)
    seconds = 0.0
    for tensor in matrices:
        count = _tokens(plan, tensor, tokens)
        observed = min(count, limit) if tensor.spec.component in (*VISION_PARTS, *AUDIO_PARTS) else count
        seconds += _tensor_seconds(plan, tensor, names, count, observed)
    return seconds


def _tokens(plan: Plan, tensor: TensorPlan, tokens: CalibrationTokens) -> float:
    if tensor.spec.component in VISION_PARTS:
        return tokens.patches
    if tensor.spec.component in AUDIO_PARTS:
        return tokens.audio_frames
    experts = plan.checkpoint.architecture.language.experts
    if experts is not None and ".experts." in tensor.name:
        return tokens.language * experts.count_per_token / experts.count
    return tokens.language


def _tensor_seconds(plan: Plan, tensor: TensorPlan, block: set[str], tokens: float, observed: float) -> float:
    rows, columns = tensor.matrix_shape
    is_in_block = "." in tensor.name  # the head has no forward pass
    model_targets = plan.recipe.has_model_targets and is_in_block
    calibrating, advancing = PASSES["model" if model_targets else "layer"]
    passed = (calibrating * observed + advancing * tokens) * is_in_block
    seconds = 2 * passed * rows * columns / FORWARD_RATE
    if not tensor.is_quantized:
        return seconds
    gram, factor, solved = columns**2, columns**3 / 3, 0
    if model_targets:  # products with the difference from the original model, and their solution
        drift = columns if stream_reader(tensor.name, block) is None else rows
        gram, factor, solved = columns**2 + 2 * columns * drift, 2 * factor, 2 * columns**2 * drift
    if not tensor.name.endswith(SHARED_INPUTS):
        seconds += observed * gram / GRAM_RATE + (factor + solved) / FACTOR_RATE
    return seconds + rows * columns**2 / ROUNDING_RATE
