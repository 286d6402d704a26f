"""A plan decides every tensor from headers alone, or says what does not fit."""

import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError, RecipeError
from mcpmq.formats import check
from mcpmq.plan import block_of, make_plan
from mcpmq.recipe import Recipe


def _recipe(**weights: str) -> Recipe:
    return Recipe.model_validate({"name": "test", "weights": weights})


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


def test_every_tensor_has_a_step_and_a_reason(checkpoint: Checkpoint) -> None:
    """Nothing is left out, and each decision says why."""
    plan = make_plan(checkpoint, Recipe.load("phone-int4"))

    assert [step.name for step in plan.steps] == [spec.name for spec in checkpoint.specs]
    assert all(step.reason for step in plan.steps)
    assert {str(step.scheme) for step in plan.steps if step.spec.role != "other"} == {"int4-g32", "int8-g32"}


def test_the_last_match_wins(checkpoint: Checkpoint) -> None:
    """Later lines refine earlier ones."""
    plan = make_plan(checkpoint, _recipe(**{"language.*": "int4-g32", "language.*.down": "int8-row", "head": "keep"}))
    schemes = {step.name: step.scheme and str(step.scheme) for step in plan.steps}

    assert schemes["language.layers.1.mlp.up"] == "int4-g32"
    assert schemes["language.layers.1.mlp.down"] == "int8-row"
    assert schemes["head"] is None
    assert schemes["vision.layers.0.mlp.up"] is None


def test_a_line_that_matches_nothing_is_an_error(checkpoint: Checkpoint) -> None:
    """A mistyped component is not ignored."""
    with pytest.raises(RecipeError, match=r"`langauge\.\*` in recipe `test` matches no weight") as caught:
        make_plan(checkpoint, _recipe(**{"langauge.*": "int4-g32"}))

    assert "language" in caught.value.hint


def test_a_line_that_matches_only_norms_is_an_error(checkpoint: Checkpoint) -> None:
    """A norm cannot be quantized, so asking for it is a mistake."""
    with pytest.raises(RecipeError, match="matches no weight"):
        make_plan(checkpoint, _recipe(**{"language.norm": "int8-row"}))


def test_a_block_that_does_not_divide_the_columns_is_an_error(checkpoint: Checkpoint) -> None:
    """64 columns are no whole block of 256, and the hint says what fits."""
    with pytest.raises(RecipeError, match=r"64 columns, not a multiple of the 256 of `q4_k`") as caught:
        make_plan(checkpoint, _recipe(**{"vision.layers.*.attention.*": "q4_k"}))

    assert "q8_0" in caught.value.hint


def test_a_hidden_width_may_be_widened(checkpoint: Checkpoint) -> None:
    """The FFN of 144 is no multiple of 32 and still takes a block format, padded exactly."""
    plan = make_plan(checkpoint, _recipe(**{"vision.layers.*.mlp.*": "q8_0"}))
    down = next(step for step in plan.steps if step.name == "vision.layers.0.mlp.down")

    assert down.spec.may_grow == "columns"
    assert down.nbytes == 64 * 5 * 34


def _rounding_inputs(weights: str, **activations: str) -> Recipe:
    return Recipe.model_validate({"name": "test", "weights": {"*": weights}, "activations": activations})


def test_inputs_are_rounded_where_the_recipe_says(checkpoint: Checkpoint) -> None:
    """Matrices only: a table is looked up, and what is no matrix multiplies nothing."""
    plan = make_plan(checkpoint, _rounding_inputs("int8-row", **{"vision.*": "u8", "projector.out": "u8"}))

    rounding = {step.name for step in plan.steps if step.activation == "u8"}
    vision = {step.name for step in plan.steps if step.name.startswith("vision.") and step.spec.role == "matrix"}
    assert rounding == vision | {"projector.out"}


@pytest.mark.parametrize("scheme", ["int8-g32", "int8-row-asym", "int4-row", "f16", "keep"])
def test_integers_that_meet_integers_have_one_scale_a_row(scheme: str, checkpoint: Checkpoint) -> None:
    """Anything else is refused before work, with what fits."""
    with pytest.raises(RecipeError, match=r"`projector\.out` is to multiply inputs of `u8`") as caught:
        make_plan(checkpoint, _rounding_inputs(scheme, **{"projector.out": "u8"}))

    assert "`int8-row`" in caught.value.hint


def test_inputs_of_nothing_are_refused(checkpoint: Checkpoint) -> None:
    """A glob that matches no matrix, be it that of a table."""
    with pytest.raises(RecipeError, match=r"`vision\.position_embedding`"):
        make_plan(checkpoint, _rounding_inputs("int8-row", **{"vision.position_embedding": "u8"}))


def test_llama_cpp_holds_no_ranges_of_inputs(checkpoint: Checkpoint) -> None:
    """It rounds activations in its own way: asking for ours is an error, not a fallback."""
    with pytest.raises(FormatError, match=r"`gguf` cannot hold that inputs of `vision.*`u8`"):
        check(make_plan(checkpoint, _rounding_inputs("int8-row", **{"vision.*": "u8"})), "gguf")


def test_sizes_are_those_of_the_schemes(checkpoint: Checkpoint) -> None:
    """The plan's bytes are the sum of its steps', kept ones at their source size."""
    plan = make_plan(checkpoint, _recipe(head="int4-g32"))
    head = next(step for step in plan.steps if step.name == "head")

    assert head.nbytes == 320 * (128 + 16)
    assert plan.nbytes == checkpoint.nbytes - 320 * 256 * 2 + head.nbytes


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("language.layers.11.mlp.up.bias", "language.layers.11"),
        ("vision.layers.0.norm1", "vision.layers.0"),
        ("language.norm", "language"),
        ("head", "head"),
    ],
)
def test_blocks_are_layers_or_components(name: str, block: str) -> None:
    """What is loaded together is named together."""
    assert block_of(name) == block


def test_planning_imports_no_torch(tiny_checkpoint: Path) -> None:
    """Headers are read in a fraction of the time that torch takes to import."""
    code = (
        "import sys; from mcpmq.checkpoint import Checkpoint; from mcpmq.plan import make_plan\n"
        "from mcpmq.recipe import Recipe; from mcpmq.formats import check\n"
        f"plan = make_plan(Checkpoint.open({str(tiny_checkpoint)!r}), Recipe.load('phone-int4'))\n"
        "check(plan, 'gguf'); check(plan, 'onnx')\n"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


# --- where scales may move -------------------------------------------------------------------------------------------


def _smooth(**weights: str) -> Recipe:
    return Recipe.model_validate({"name": "smooth", "smooth": "awq", "weights": weights})


def test_norms_that_take_scales_have_32_bits(checkpoint: Checkpoint) -> None:
    """With their biases, and the biases of rows that take scales; nothing else changes, and the reason is said."""
    every = {"*": "int8-g32"}
    plain, plan = make_plan(checkpoint, _recipe(**every)), make_plan(checkpoint, _smooth(**every))
    changed = [step for step, before in zip(plan.steps, plain.steps, strict=True) if step != before]

    assert {(str(step.scheme), step.reason) for step in changed} == {("f32", "takes the scales of smoothing")}
    assert {step.name for step in changed if ".layers.1." in step.name} == {
        *(f"vision.layers.1.{name}" for name in ("norm1", "norm1.bias", "norm2", "norm2.bias", "attention.v.bias")),
        *(f"language.layers.1.{name}" for name in ("input_norm", "post_attention_norm", "attention.v.bias")),
    }
    assert plan.nbytes - plain.nbytes == 2 * sum(step.spec.shape[0] for step in changed)
    assert plan.notes == ()


def test_a_matrix_that_would_be_rounded_otherwise_takes_no_scales(checkpoint: Checkpoint) -> None:
    """bf16 cannot hold them exactly: what the neighbour of a kept matrix loses is said, f32 holds them, and where
    nothing is on a grid there is nothing to say."""
    kept = {"language.*.attention.v": "keep", "language.*.attention.o": "keep", "language.*.mlp.up": "f32"}

    plan = make_plan(checkpoint, _smooth(**{"language.*": "int4-g32", **kept}))

    assert {fold.source for fold in plan.folds["language.layers.0"]} == {
        "language.layers.0.post_attention_norm",
        "language.layers.0.mlp.up",
    }
    assert plan.folds.keys() == {"language.layers.0", "language.layers.1"}
    assert plan.notes == ("language: no scales from `input_norm`, for `attention.v` keeps bfloat16 (2 times)",)
    assert "language.layers.0.mlp.up" in plan.smoothed


def test_smoothing_nothing_is_an_error(checkpoint: Checkpoint) -> None:
    """A head has no neighbour in its block."""
    with pytest.raises(RecipeError, match="no scale can move between the weights it quantizes"):
        make_plan(checkpoint, _smooth(head="int8-row"))
