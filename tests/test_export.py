"""Exports: reproducible bytes, complete manifests, and no partial output."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from mcpmq.artifact import Artifact
from mcpmq.errors import FormatError, OutputError
from mcpmq.export import export
from mcpmq.quantized_model import QuantizedModel


def test_two_exports_have_the_same_bytes(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """Two exports of a quantized model have equal file hashes, in both formats."""
    for name in ("gguf", "onnx"):
        first = export(tiny_int4, name, tmp_path / name / "first")
        second = export(tiny_int4, name, tmp_path / name / "second")
        assert first.manifest == second.manifest


def test_the_manifest_extends_that_of_the_quantized_model(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """Recipe, hashes and decisions are the same; kind, files, padded shapes and cache sizes are those of the format.

    The hash of the quantized model is recorded.
    """
    manifest, source = export(tiny_int4, "gguf", tmp_path / "out").manifest, tiny_int4.artifact.manifest

    assert manifest.kind == "gguf"
    weights = tuple(record.model_copy(update={"padded_shape": None}) for record in manifest.weights)
    assert manifest.quantized_sha256 == tiny_int4.artifact.sha256
    quantized = {
        "kind": "quantized",
        "files": (),
        "weights": weights,
        "quantized_sha256": None,
        "kv_cache_nbytes": None,
    }
    assert manifest.model_copy(update=quantized) == source.model_copy(update={"files": ()})


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_the_manifest_records_padded_shapes(
    name: Literal["gguf", "onnx"], tiny_int4: QuantizedModel, tmp_path: Path
) -> None:
    """The intermediate size of 144 in the vision encoder is padded to 160, with its biases; no other shape is."""
    manifest = export(tiny_int4, name, tmp_path / "out").manifest

    padded = {record.name: record.padded_shape for record in manifest.weights if record.padded_shape}
    layer = {"mlp.up": (160, 64), "mlp.up.bias": (160,), "mlp.down": (64, 160)}
    assert padded == {f"vision.layers.{number}.{part}": shape for number in (0, 1) for part, shape in layer.items()}


def test_notes_are_exported(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """The notes of the quantized model are in the manifest of the export."""
    manifest = tiny_int4.artifact.manifest.model_copy(update={"notes": ("a note",)})
    noted = replace(tiny_int4, artifact=replace(tiny_int4.artifact, manifest=manifest))

    assert export(noted, "gguf", tmp_path / "out").manifest.notes == ("a note",)


def test_an_earlier_export_is_returned(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """A second export of the same model changes no file."""
    export(tiny_int4, "gguf", tmp_path / "out")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}

    export(tiny_int4, "gguf", tmp_path / "out")

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == times


def test_another_artifact_is_not_overwritten(
    tiny_int4: QuantizedModel, tiny_full: QuantizedModel, tmp_path: Path
) -> None:
    """An output folder with another artifact is an error, and the artifact stays valid."""
    export(tiny_int4, "gguf", tmp_path / "out")

    with pytest.raises(OutputError, match="not empty"):
        export(tiny_full, "gguf", tmp_path / "out")

    Artifact.open(tmp_path / "out").verify()


def test_an_unsupported_scheme_is_an_error(tiny_quality: QuantizedModel, tmp_path: Path) -> None:
    """K-quants have no ONNX operator; the error comes before anything is written."""
    with pytest.raises(FormatError, match="`onnx` cannot store"):
        export(tiny_quality, "onnx", tmp_path / "out")

    assert not list(tmp_path.iterdir())
