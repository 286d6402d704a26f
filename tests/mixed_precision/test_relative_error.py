"""Losses from an importance matrix: output errors, shares of the residual stream, and a search in little memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.real_size import PUBLISHED_CONFIG, write_sparse_checkpoint
from benchmarks.search_speed import write_uniform_imatrix
from mcpmq.artifact import Artifact
from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.calibrate.read_importance import InputImportance, read_importance
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError, DatasetError
from mcpmq.grids import dequantize, quantize
from mcpmq.mixed_precision import Budget, search_with_imatrix
from mcpmq.mixed_precision.relative_error import importance_losses, stream_shares
from mcpmq.recipe import Recipe
from mcpmq.scheme import IntegerScheme, parse_scheme
from mcpmq.system.progress import silent

BASE = Recipe.load("phone-int4")
HEAD, KEY = "head", "language.layers.0.attention.k"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def imatrix(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The importance matrix over samples with and without images."""
    return write_imatrix(checkpoint, mixed_set, tmp_path_factory.mktemp("imatrix") / "whole")


def test_branches_count_by_their_share_of_the_stream() -> None:
    """4 of 8 after attention, 8 of 16 after the MLP, 16 of 32 after the next layer; 1 outside of layers."""
    energies = {
        "embedding": 4.0,
        "language.layers.0.attention.q": 9.0,
        "language.layers.0.attention.o": 4.0,
        "language.layers.0.mlp.up": 1.0,
        "language.layers.0.mlp.down": 8.0,
        "language.layers.1.attention.o": 16.0,
        "vision.position_embedding": 3.0,
        "vision.layers.0.attention.o": 1.0,
        "head": 7.0,
    }

    assert list(stream_shares(energies).values()) == [1, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 0.25, 1]


def test_losses_are_relative_errors_of_outputs(checkpoint: Checkpoint) -> None:
    """With one weight outside of layers the loss is its weighted error over its weighted square; images count less."""
    spec = next(spec for spec in checkpoint.specs if spec.name == "projector.kv")
    weight, squares = checkpoint.load(spec)[::2].float(), torch.linspace(0.1, 3, spec.shape[1])
    schemes = {spec.name: [parse_scheme("int4-g32"), parse_scheme("f16"), None]}
    importance = InputImportance({spec.name: [squares]}, {"vision": 0.25, "audio": 0.5}, "nothing")

    found = importance_losses(checkpoint, schemes, True, importance, silent)[spec.name]

    assert len(weight) == 128  # every second of 256 rows is sampled
    rounded = dequantize(quantize(weight, IntegerScheme(4, 32), squares))
    error, energy = ((values.square() * squares).sum() for values in (rounded - weight, weight))
    assert found["int4-g32"] == pytest.approx(0.25 * float(error / energy), rel=1e-5)
    assert found["f16"] < found["int4-g32"] / 1000
    assert found["keep"] == 0


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_sampled_rows_are_those_of_the_tensor(checkpoint: Checkpoint, step: int) -> None:
    """Every step-th row of every matrix and table equals that of the whole tensor."""
    for spec in checkpoint.specs:
        if spec.role != "other":
            assert torch.equal(checkpoint.load_every(spec, step), checkpoint.load(spec)[::step]), spec.name


def test_an_imatrix_is_read_as_mean_squares(
    checkpoint: Checkpoint, imatrix: Artifact, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Every matrix has the mean squares of its columns, also with padding; the share of image tokens is known."""
    found = read_importance(imatrix.path, checkpoint)
    specs = {spec.name: spec for spec in checkpoint.specs if spec.role == "matrix"}

    assert found.mean_squares.keys() == specs.keys()
    for name, parts in found.mean_squares.items():
        spec = specs[name]
        assert {len(part) for part in parts} == {spec.shape[0 if spec.transposed else 1]}
        assert all(0 < part.mean() < 1000 for part in parts), name
    assert found.token_shares == {"vision": pytest.approx(40 / 539), "audio": 0}
    assert mixed_set.sha256 in found.source


def test_another_artifact_is_an_error(checkpoint: Checkpoint, tiny_exports: list[Artifact]) -> None:
    """The error names the command that writes an importance matrix."""
    with pytest.raises(ArtifactError) as caught:
        read_importance(tiny_exports[0].path, checkpoint)

    assert "mcpmq imatrix" in caught.value.hint


def test_a_search_needs_inputs_of_every_matrix(checkpoint: Checkpoint, mixed_set: SampleSet, tmp_path: Path) -> None:
    """Without images the vision encoder has no statistics, which is an error."""
    text = SampleSet(mixed_set.path, tuple(sample for sample in mixed_set if sample.image is None))
    write_imatrix(checkpoint, text, tmp_path / "text")

    with pytest.raises(DatasetError, match=r"`vision\..* receives no token"):
        search_with_imatrix(checkpoint, BASE, "gguf", Budget(file_nbytes=1_700_000), tmp_path / "text", silent)


WITH_PEAK_MEMORY = """
import sys
from mcpmq.cli import main
try:
    main()
finally:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_a_search_is_within_its_limit(checkpoint: Checkpoint, imatrix: Artifact, mixed_set: SampleSet) -> None:
    """The recipe fits, names its data, and has less loss with a larger limit."""
    small, large = (
        search_with_imatrix(checkpoint, BASE, "gguf", Budget(file_nbytes=nbytes), imatrix.path, silent)
        for nbytes in (1_700_000, 2_000_000)
    )

    assert 1_600_000 < small.estimate.nbytes <= 1_700_000
    assert 0 < large.rank_score < small.rank_score
    assert f"predicted from the importance matrix of {mixed_set.name}" in small.to_toml()


def test_a_search_reads_a_large_checkpoint_in_little_memory(tmp_path: Path) -> None:
    """With 3.1 GB of weights, in matrices of up to 1.1 GB, the process takes less than 0.9 GB."""
    vision = PUBLISHED_CONFIG["vision_config"] | {"num_hidden_layers": 2}
    write_sparse_checkpoint(tmp_path / "checkpoint", 2, PUBLISHED_CONFIG | {"vision_config": vision})
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    write_uniform_imatrix(checkpoint, tmp_path / "imatrix")
    words = ["search", tmp_path / "checkpoint", tmp_path / "mine.toml", "-f", "gguf", "--max-size", "2GB"]
    command = [sys.executable, "-c", WITH_PEAK_MEMORY, "--quiet", *words, "--imatrix", tmp_path / "imatrix"]
    process = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)

    assert checkpoint.nbytes > 3_100_000_000
    assert 100_000 < int(process.stdout.split()[-2]) < 900_000
    assert Recipe.load(str(tmp_path / "mine.toml"))
