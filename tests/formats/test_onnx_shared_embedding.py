"""Tied embeddings that both ONNX graphs share."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from mcpmq.artifact import Artifact, write_manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.formats.onnx.external_data import CountingSink, SharingSink, StoredArray
from mcpmq.formats.sharding import split_artifact
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import make_plan
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import open_runner
from tests.commands import Command
from tests.tiny_families import QWEN2_VL

WEIGHTS = {"*": "int4-g32"}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose head is its embedding."""
    return Checkpoint.open(QWEN2_VL.build(tmp_path_factory.mktemp("tied") / "tiny"))


def _artifact(checkpoint: Checkpoint, out: Path, **weights: str) -> Artifact:
    """Write an artifact that shares the embedding, after a forecast with the same bytes."""
    recipe = Recipe.model_validate({"name": "s", "onnx_embedding": "shared", "weights": WEIGHTS | weights})
    plan = make_plan(checkpoint, recipe)
    [expected] = forecast(plan, ["onnx"], 512).formats
    artifact = convert_in_one_pass(plan, "onnx", out)
    assert {(one.path, one.nbytes) for one in expected.files.files} == {
        (one.path, one.nbytes) for one in artifact.manifest.files
    }
    return artifact


def _logits(path: Path) -> NDArray[np.float32]:
    runner, tokens = open_runner(path, 1), np.arange(3, 9)
    positions = np.tile(np.arange(6), (3, 1))
    return runner.decode(runner.embed_tokens(tokens), runner.empty_cache(), 0, positions)[0]


def _data_nbytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "onnx").glob("*_data*"))


@pytest.fixture(scope="module")
def shared(tied: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact that has the embedding once."""
    return _artifact(tied, tmp_path_factory.mktemp("shared") / "onnx")


def test_the_decoder_has_the_arrays_of_the_embedding(tied: Checkpoint, shared: Artifact, tmp_path: Path) -> None:
    """The artifact is smaller by the table, and its logits are the same."""
    recipe = Recipe.model_validate({"name": "s", "weights": WEIGHTS})
    separate = convert_in_one_pass(make_plan(tied, recipe), "onnx", tmp_path / "separate")
    shape = tied.architecture.language
    table = shape.vocab_size * shape.hidden_size // 32 * 20  # 32 weights have 16 bytes of codes and a float32 scale
    sizes = [sum(one.nbytes for one in artifact.manifest.files) for artifact in (separate, shared)]
    decoder = ir.load(shared.path / "onnx" / "decoder_model_merged_q4.onnx").graph.initializers

    assert abs(sizes[0] - sizes[1] - table) < 200  # the alignment, and the names of files in the graph
    assert str(decoder["embedding.codes"].const_value.location) == "embed_tokens_q4.onnx_data"  # type: ignore[union-attr]
    np.testing.assert_array_equal(_logits(shared.path), _logits(separate.path))


def test_a_split_artifact_has_them_once_too(shared: Artifact, tmp_path: Path) -> None:
    """The chunks of a release have the same bytes of weights, and the same logits."""
    (tmp_path / "split").mkdir()
    files = split_artifact(shared, tmp_path / "split", 200_000)
    write_manifest(tmp_path / "split", shared.manifest.model_copy(update={"files": ()}), files)

    assert any(name.endswith("_data_1") for names in files.values() for name in names)
    before, after = (
        sum(file.stat().st_size for file in (folder / "onnx").glob("*_data*"))
        for folder in (shared.path, tmp_path / "split")
    )
    assert abs(before - after) < 2000
    np.testing.assert_array_equal(_logits(tmp_path / "split"), _logits(shared.path))


@pytest.mark.parametrize("scheme", ["f16", "int8-row", "keep"])
def test_other_tables_are_in_both_graphs(tied: Checkpoint, scheme: str, tmp_path: Path) -> None:
    """Floats are transposed in the decoder, and blocks of rows are padded."""
    artifact = _artifact(tied, tmp_path / "onnx", embedding=scheme)

    assert np.isfinite(_logits(artifact.path)).all()


def test_a_model_with_its_own_head_is_an_error(tiny_checkpoint: Path) -> None:
    """There is nothing to share."""
    recipe = Recipe.model_validate({"name": "s", "onnx_embedding": "shared", "weights": WEIGHTS})
    with pytest.raises(RecipeError, match="has a head of its own"):
        make_plan(Checkpoint.open(tiny_checkpoint), recipe)


def test_arrays_of_another_size_are_not_shared(tmp_path: Path) -> None:
    """They would be other values."""
    tensor = ir.ExternalTensor("a", 0, 8, ir.DataType.UINT8, shape=ir.Shape([8]), name="x", base_dir=tmp_path)
    sink = SharingSink(CountingSink(tmp_path, "b"), {"x": tensor})

    assert sink.append("x", StoredArray(ir.DataType.UINT8, (2, 4))).location == "a"
    assert sink.append("y", StoredArray(ir.DataType.UINT8, (2, 4))).location == "b"
    with pytest.raises(ValueError, match="`x` has 9 bytes, and 8 in the other graph"):
        sink.append("x", StoredArray(ir.DataType.UINT8, (9,)))


def test_plan_names_the_shared_table(tied: Checkpoint, mcpmq: Command) -> None:
    """`--onnx-shared-embedding` is short for the setting of a recipe."""
    options = ("--recipe", "phone-int4", "--format", "onnx", "--onnx-shared-embedding")
    assert "shared by two graphs" in mcpmq("plan", tied.path, *options).stdout
