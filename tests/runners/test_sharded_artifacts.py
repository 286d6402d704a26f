"""An engine that loads an artifact in parts computes what it computes with the whole."""

from pathlib import Path

import pytest

from mcpmq.artifact import Artifact, write_manifest
from mcpmq.export import export
from mcpmq.families.family import Inputs
from mcpmq.formats.sharding import divide
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.launcher import Engine, run
from tests.gguf_tools import quantized_by

PART_NBYTES = 1_000_000


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_an_engine_computes_the_same_with_parts(
    tiny_checkpoint: Path, tiny_samples: list[Inputs], tmp_path: Path, kind: Engine
) -> None:
    """Losses are equal to the last bit, and no file is larger than asked."""
    (tmp_path / "samples").mkdir()
    samples = SampleFiles(tmp_path / "samples")
    for sample in tiny_samples[:2]:
        samples.append(sample)
    assert kind != "torch"
    int8 = quantized_by(tiny_checkpoint, tmp_path, _all="int8-g32")
    whole = export(int8, kind, tmp_path / "whole")
    (tmp_path / "parts").mkdir()

    files = divide(whole, tmp_path / "parts", PART_NBYTES)
    write_manifest(tmp_path / "parts", whole.manifest.model_copy(update={"files": ()}), files)
    parts = Artifact.open(tmp_path / "parts")

    assert len(parts.manifest.files) > len(whole.manifest.files)
    assert max(record.nbytes for record in parts.manifest.files) <= PART_NBYTES
    assert run(kind, parts.path, samples, 1).answers == run(kind, whole.path, samples, 1).answers
