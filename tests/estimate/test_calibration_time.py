"""The time of a calibration from counts of operations that are computed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.cli import planning
from mcpmq.dataset import SampleSet
from mcpmq.estimate import calibration_time
from mcpmq.estimate.calibration_time import CalibrationTokens, calibration_seconds
from mcpmq.families.inputs import Inputs
from mcpmq.formats.image_tokens import image_tokens
from mcpmq.plan import Plan, TensorPlan, make_plan
from mcpmq.recipe import Recipe
from mcpmq.system.progress import silent
from tests.tiny_families import QWEN3_VL_MOE

ENCODER = ("vision", "projector")  # components whose inputs are patches
RATES = {"FORWARD_RATE": 2e3, "GRAM_RATE": 3e3, "FACTOR_RATE": 5e3, "ROUNDING_RATE": 7e3}


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that differ, so that every count of operations is tested."""
    for name, rate in RATES.items():
        monkeypatch.setattr(calibration_time, name, rate)


def plan_of(checkpoint: Path, targets: str, *globs: str) -> Plan:
    """Return a plan that calibrates the weights of these globs."""
    weights = {"*": "keep", **dict.fromkeys(globs, "int4-g32")}
    fields = {"name": "timed", "method": "gptq", "targets": targets, "weights": weights}
    return make_plan(Checkpoint.open(checkpoint), Recipe.model_validate(fields))


def forward(plan: Plan, passes: float, tokens: CalibrationTokens) -> float:
    """Return the seconds of forward passes through all matrices in blocks."""
    matrices = [one for one in plan.tensors if one.spec.role == "matrix" and "." in one.name]
    counts = [(tokens.patches if one.name.startswith(ENCODER) else tokens.language, one) for one in matrices]
    return sum(passes * 2 * count * one.matrix_shape[0] * one.matrix_shape[1] / 2e3 for count, one in counts)


def shape_of(plan: Plan, name: str) -> tuple[int, int]:
    """Return rows and columns of a weight."""
    tensor: TensorPlan = next(one for one in plan.tensors if one.name == name)
    return tensor.matrix_shape


def test_the_operations_of_layer_targets(small_checkpoint: Path) -> None:
    """Two passes; a product and a factor for the input of the queries alone, and rounding of three matrices."""
    names = [f"language.layers.1.attention.{name}" for name in "qkv"]
    plan, tokens = plan_of(small_checkpoint, "layer", *names), CalibrationTokens(11, 5)
    shapes = [shape_of(plan, name) for name in names]
    columns = shapes[0][1]

    rounding = sum(rows * columns**2 for rows, _ in shapes) / 7e3
    expected = forward(plan, 2, tokens) + 11 * columns**2 / 3e3 + columns**3 / 3 / 5e3 + rounding
    assert calibration_seconds(plan, tokens) == pytest.approx(expected)


def test_the_operations_of_model_targets(small_checkpoint: Path) -> None:
    """Five passes; products with the difference of the residual stream, and a factor and a solution more."""
    name = "language.layers.1.mlp.down"
    plan, tokens = plan_of(small_checkpoint, "model", name), CalibrationTokens(11, 5)
    rows, columns = shape_of(plan, name)

    products = 11 * (columns**2 + 2 * columns * rows) / 3e3
    solution = (2 * columns**3 / 3 + 2 * columns**2 * rows) / 5e3
    expected = forward(plan, 5, tokens) + products + solution + rows * columns**2 / 7e3
    assert calibration_seconds(plan, tokens) == pytest.approx(expected)


@pytest.mark.parametrize(("targets", "passes"), [("layer", 2), ("model", 10)])
def test_every_pass_of_a_sample_has_an_overhead(targets: str, passes: int, small_checkpoint: Path) -> None:
    """It is 3 ms for each block, also for those that have no matrices."""
    plan = plan_of(small_checkpoint, targets, "language.layers.1.mlp.down")
    without = calibration_seconds(plan, CalibrationTokens(11, 5))

    found = calibration_seconds(plan, CalibrationTokens(11, 5, samples=7))

    assert found - without == pytest.approx(7 * passes * len(plan.blocks) * 0.003)


def test_a_part_of_the_patches_calibrates_vision_layers(small_checkpoint: Path) -> None:
    """All of a million patches pass once, and 16,384 of them a first time, with the products."""
    name = "vision.layers.0.mlp.down"
    plan, tokens = plan_of(small_checkpoint, "layer", name), CalibrationTokens(0, 1_000_000)
    rows, columns = shape_of(plan, name)

    once = forward(plan, 1, tokens) + forward(plan, 1, CalibrationTokens(0, 16_384))
    products = 16_384 * columns**2 / 3e3 + columns**3 / 3 / 5e3 + rows * columns**2 / 7e3
    assert calibration_seconds(plan, tokens) == pytest.approx(once + products)


def test_the_head_has_no_forward_pass(small_checkpoint: Path) -> None:
    """Its targets are its own outputs: a product, a factor, and rounding."""
    plan, tokens = plan_of(small_checkpoint, "model", "head"), CalibrationTokens(11, 5)
    rows, columns = shape_of(plan, "head")

    expected = 11 * columns**2 / 3e3 + columns**3 / 3 / 5e3 + rows * columns**2 / 7e3
    assert calibration_seconds(plan, tokens) == pytest.approx(forward(plan, 5, tokens) + expected)


def test_experts_receive_a_share_of_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of forward passes is that of the experts that a token is routed to."""
    path = QWEN3_VL_MOE.build(tmp_path / "tiny")
    plan = plan_of(path, "layer", "language.layers.0.attention.q")
    experts = plan.checkpoint.architecture.language.experts
    assert experts is not None
    all_tokens = calibration_seconds(plan, CalibrationTokens(16))
    monkeypatch.setattr(calibration_time, "FORWARD_RATE", 1e30)

    matrices = [one for one in plan.tensors if ".experts." in one.name]
    weights = sum(one.matrix_shape[0] * one.matrix_shape[1] for one in matrices)
    others = sum(
        one.matrix_shape[0] * one.matrix_shape[1]
        for one in plan.tensors
        if one.spec.role == "matrix" and "." in one.name and one not in matrices and not one.name.startswith(ENCODER)
    )
    share = weights * experts.count_per_token / experts.count
    forward_seconds = all_tokens - calibration_seconds(plan, CalibrationTokens(16))
    assert forward_seconds == pytest.approx(2 * 2 * 16 * (others + share) / 2e3)


def test_inputs_are_counted() -> None:
    """Tokens, patches of images and of the frames of a video, none without a vision encoder, and 20 ms of audio."""
    slices = np.zeros((28, 42, 3), np.uint8), np.zeros((2, 14, 28, 3), np.uint8)
    one = Inputs("a", np.arange(9), 3, slices, np.zeros((2, 2), np.int64))

    assert CalibrationTokens.of_samples([one, one], 14) == CalibrationTokens(18, 2 * (2 * 3 + 1 * 2), 2)
    assert CalibrationTokens.of_samples([one], 0) == CalibrationTokens(9, 0, 1)
    with_audio = replace(one, audio=(np.zeros(8_000, np.float32), np.zeros(16_000, np.float32)))
    assert CalibrationTokens.of_samples([with_audio], 14) == CalibrationTokens(9, 8, 1, 75)


def test_the_set_of_a_plan_is_counted(small_checkpoint: Path, mixed_set: SampleSet) -> None:
    """All samples are encoded; without a set, or calibration, there is nothing to count."""
    plan = plan_of(small_checkpoint, "layer", "head")
    none = make_plan(plan.checkpoint, Recipe.load("phone-int8"))
    processor = plan.checkpoint.family.open_processor(small_checkpoint)
    tokens = [len(processor.encode_turns(one.id, one.turns).tokens) for one in mixed_set]

    found = planning._count_tokens(plan, mixed_set, silent)

    assert found is not None
    assert found.language == sum(tokens)
    assert found.patches > 0
    assert planning._count_tokens(plan, None, silent) is None
    assert planning._count_tokens(none, mixed_set, silent) is None


def test_without_a_set_the_time_is_for_the_recommended_tokens(small_checkpoint: Path) -> None:
    """Half of 16,384 tokens are those of images, whose patches follow from the resampler."""
    plan = plan_of(small_checkpoint, "layer", "head")
    vision = plan.checkpoint.architecture.vision
    assert vision is not None

    found = CalibrationTokens.recommended(plan)

    image = image_tokens(plan.checkpoint)[0]
    assert (found.language, found.samples) == (16_384, 16)
    assert found.patches == int(8_192 * image.width * image.height / vision.patch_size**2 / image.tokens)
