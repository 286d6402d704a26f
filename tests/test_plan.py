"""Plans: every tensor gets a scheme from headers alone, or an error names the misfit."""

import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError, RecipeError
from mcpmq.families.blocks import block_name
from mcpmq.formats import check_plan
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe


def _recipe(**weights: str) -> Recipe:
    return Recipe.model_validate({"name": "test", "weights": weights})


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


def test_every_tensor_is_planned_with_a_reason(checkpoint: Checkpoint) -> None:
    """The plan has all tensors of the checkpoint in order, each with a reason."""
    plan = make_plan(checkpoint, Recipe.load("phone-int4"))

    assert [tensor.name for tensor in plan.tensors] == [spec.name for spec in checkpoint.specs]
    assert all(tensor.reason for tensor in plan.tensors)
    assert {str(tensor.scheme) for tensor in plan.tensors if tensor.spec.role != "other"} == {"int4-g32", "int8-g32"}


def test_the_last_matching_glob_wins(checkpoint: Checkpoint) -> None:
    """Later globs override earlier ones, and `keep` keeps the dtype."""
    plan = make_plan(checkpoint, _recipe(**{"language.*": "int4-g32", "language.*.down": "int8-row", "head": "keep"}))
    schemes = {tensor.name: tensor.scheme and str(tensor.scheme) for tensor in plan.tensors}

    assert schemes["language.layers.1.mlp.up"] == "int4-g32"
    assert schemes["language.layers.1.mlp.down"] == "int8-row"
    assert schemes["head"] is None
    assert schemes["vision.layers.0.mlp.up"] is None


def test_a_glob_that_matches_nothing_is_an_error(checkpoint: Checkpoint) -> None:
    """A misspelled component is an error whose hint lists the components."""
    with pytest.raises(RecipeError, match=r"`langauge\.\*` in recipe `test` matches no weight") as caught:
        make_plan(checkpoint, _recipe(**{"langauge.*": "int4-g32"}))

    assert "language" in caught.value.hint


def test_a_glob_that_matches_only_norms_is_an_error(checkpoint: Checkpoint) -> None:
    """Norms cannot be quantized."""
    with pytest.raises(RecipeError, match="matches no weight"):
        make_plan(checkpoint, _recipe(**{"language.norm": "int8-row"}))


def test_a_block_that_does_not_divide_the_columns_is_an_error(checkpoint: Checkpoint) -> None:
    """64 columns do not fill a block of 256, and the hint names block types that fit."""
    with pytest.raises(RecipeError, match=r"64 columns, not a multiple of the 256 of `q4_k`") as caught:
        make_plan(checkpoint, _recipe(**{"vision.layers.*.attention.*": "q4_k"}))

    assert "q8_0" in caught.value.hint


def test_a_choice_of_schemes_is_reported(checkpoint: Checkpoint) -> None:
    """Weights of 64 columns get the second scheme, with the reason and a note; those of 256 columns get the first."""
    plan = make_plan(
        checkpoint, _recipe(**{"vision.layers.*.attention.*": "q4_k or q8_0", "language.*": "q4_k or q8_0"})
    )
    schemes = {tensor.name: (str(tensor.scheme), tensor.reason) for tensor in plan.tensors}

    reason = '"vision.layers.*.attention.*"; 64 columns are not a multiple of the 256 of q4_k'
    assert schemes["vision.layers.0.attention.q"] == ("q8_0", reason)
    assert schemes["language.layers.0.attention.q"] == ("q4_k", '"language.*"')
    chosen = [scheme for name, (scheme, _) in schemes.items() if name.startswith("vision.layers.")].count("q8_0")
    assert plan.notes == (f"q8_0 instead of q4_k for {chosen} weights: q4_k needs multiples of 256 columns",)


def test_an_intermediate_size_is_padded(checkpoint: Checkpoint) -> None:
    """An intermediate size of 144 is not a multiple of 32; a block type pads it to 160 columns."""
    plan = make_plan(checkpoint, _recipe(**{"vision.layers.*.mlp.*": "q8_0"}))
    down = next(tensor for tensor in plan.tensors if tensor.name == "vision.layers.0.mlp.down")

    assert down.spec.paddable_axis == "columns"
    assert down.nbytes == 64 * 5 * 34


def _with_activations(weights: str, **activations: str) -> Recipe:
    return Recipe.model_validate({"name": "test", "weights": {"*": weights}, "activations": activations})


def test_activations_are_quantized_where_a_glob_matches(checkpoint: Checkpoint) -> None:
    """Only matrices have activations; tables and other tensors are not affected."""
    plan = make_plan(checkpoint, _with_activations("int8-row", **{"vision.*": "u8", "projector.out": "u8"}))

    quantized = {tensor.name for tensor in plan.tensors if tensor.activation == "u8"}
    matrices = {tensor.name for tensor in plan.tensors if tensor.spec.role == "matrix"}
    assert quantized == {name for name in matrices if name.startswith("vision.")} | {"projector.out"}


@pytest.mark.parametrize("scheme", ["int8-g32", "int8-row-asym", "int4-row", "f16", "keep"])
def test_quantized_activations_need_weights_with_one_scale_per_row(scheme: str, checkpoint: Checkpoint) -> None:
    """Any other scheme is an error before any work, and the hint names the scheme that fits."""
    with pytest.raises(RecipeError, match=r"`projector\.out` has `u8` activations and") as caught:
        make_plan(checkpoint, _with_activations(scheme, **{"projector.out": "u8"}))

    assert "`int8-row`" in caught.value.hint


def test_an_activation_glob_must_match_a_matrix(checkpoint: Checkpoint) -> None:
    """A glob that matches only a table is an error."""
    with pytest.raises(RecipeError, match=r"`vision\.position_embedding`"):
        make_plan(checkpoint, _with_activations("int8-row", **{"vision.position_embedding": "u8"}))


def test_quantized_activations_are_an_error_in_gguf(checkpoint: Checkpoint) -> None:
    """llama.cpp quantizes activations in its own way, so a request for static ranges is an error."""
    with pytest.raises(FormatError, match=r"`gguf` does not support quantized activations: `vision.*`u8`"):
        check_plan(make_plan(checkpoint, _with_activations("int8-row", **{"vision.*": "u8"})), "gguf")


def test_sizes_follow_from_the_schemes(checkpoint: Checkpoint) -> None:
    """The bytes of a plan are the sum over its tensors; kept tensors have their original size."""
    plan = make_plan(checkpoint, _recipe(head="int4-g32"))
    head = next(tensor for tensor in plan.tensors if tensor.name == "head")

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
    """Tensors that are loaded together have the same block name."""
    assert block_name(name) == block


def test_planning_imports_no_torch(tiny_checkpoint: Path) -> None:
    """Planning and checking a plan do not import torch."""
    code = (
        "import sys; from mcpmq.checkpoint import Checkpoint; from mcpmq.plan import make_plan\n"
        "from mcpmq.recipe import Recipe; from mcpmq.formats import check_plan\n"
        f"plan = make_plan(Checkpoint.open({str(tiny_checkpoint)!r}), Recipe.load('phone-int4'))\n"
        "check_plan(plan, 'gguf'); check_plan(plan, 'onnx')\n"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


# --- smoothing --------------------------------------------------------------------------------------------------------


def _smooth(**weights: str) -> Recipe:
    return Recipe.model_validate({"name": "smooth", "smooth": "awq", "weights": weights})


def test_norms_that_take_scales_are_stored_in_float32(checkpoint: Checkpoint) -> None:
    """Norms, their biases and the biases of scaled rows become float32; no other tensor changes."""
    every = {"*": "int8-g32"}
    plain, plan = make_plan(checkpoint, _recipe(**every)), make_plan(checkpoint, _smooth(**every))
    changed = [tensor for tensor, before in zip(plan.tensors, plain.tensors, strict=True) if tensor != before]

    assert {(str(tensor.scheme), tensor.reason) for tensor in changed} == {("f32", "takes smoothing scales")}
    assert {tensor.name for tensor in changed if ".layers.1." in tensor.name} == {
        *(f"vision.layers.1.{name}" for name in ("norm1", "norm1.bias", "norm2", "norm2.bias", "attention.v.bias")),
        *(f"language.layers.1.{name}" for name in ("input_norm", "post_attention_norm", "attention.v.bias")),
    }
    assert plan.nbytes - plain.nbytes == 2 * sum(tensor.spec.shape[0] for tensor in changed)
    assert plan.notes == ()


def test_a_kept_bfloat16_matrix_takes_no_scales(checkpoint: Checkpoint) -> None:
    """bf16 cannot represent scaled weights exactly: the mapping is dropped with a note; float32 weights take scales."""
    kept = {"language.*.attention.v": "keep", "language.*.attention.o": "keep", "language.*.mlp.up": "f32"}

    plan = make_plan(checkpoint, _smooth(**{"language.*": "int4-g32", **kept}))

    assert {mapping.smooth_layer for mapping in plan.smoothing_mappings["language.layers.0"]} == {
        "language.layers.0.post_attention_norm",
        "language.layers.0.mlp.up",
    }
    assert plan.smoothing_mappings.keys() == {"language.layers.0", "language.layers.1"}
    assert plan.notes == ("language: no scales from `input_norm`, because `attention.v` keeps bfloat16 (2 times)",)
    assert "language.layers.0.mlp.up" in plan.smoothed_weights


def test_smoothing_nothing_is_an_error(checkpoint: Checkpoint) -> None:
    """The head has no smoothing mapping."""
    with pytest.raises(RecipeError, match="requests smoothing, and no smoothing mapping has only quantized weights"):
        make_plan(checkpoint, _smooth(head="int8-row"))
