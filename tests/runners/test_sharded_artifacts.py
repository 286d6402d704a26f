"""Engines load sharded artifacts."""

from pathlib import Path
from typing import Literal

import pytest

from mcpmq.artifact import Artifact, write_manifest
from mcpmq.export import export
from mcpmq.families.inputs import Inputs
from mcpmq.formats.sharding import split_artifact
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.launcher import run_engine
from tests.gguf_tools import quantize_with

SHARD_NBYTES = 1_000_000


@pytest.mark.parametrize("format_name", ["gguf", "onnx"])
def test_a_sharded_artifact_gives_equal_losses(
    tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path, format_name: Literal["gguf", "onnx"]
) -> None:
    """Losses are bit-identical to those of the unsharded artifact, and no file exceeds the limit."""
    (tmp_path / "samples").mkdir()
    samples = InputsStore(tmp_path / "samples")
    for sample in tiny_samples[:2]:
        samples.append(sample)
    int8 = quantize_with(tiny_checkpoint, tmp_path, _all="int8-g32")
    whole = export(int8, format_name, tmp_path / "whole")
    (tmp_path / "shards").mkdir()

    files = split_artifact(whole, tmp_path / "shards", SHARD_NBYTES)
    write_manifest(tmp_path / "shards", whole.manifest.model_copy(update={"files": ()}), files)
    shards = Artifact.open(tmp_path / "shards")

    assert len(shards.manifest.files) > len(whole.manifest.files)
    assert max(record.nbytes for record in shards.manifest.files) <= SHARD_NBYTES
    assert (
        run_engine(format_name, shards.path, samples, 1).answers
        == run_engine(format_name, whole.path, samples, 1).answers
    )
