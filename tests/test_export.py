"""Exporting changes no code and leaves nothing half-done."""

from dataclasses import replace
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.errors import FormatError, OutputError
from mcpmq.export import export
from mcpmq.quantized_model import Quantized


def test_the_same_codes_give_the_same_bytes(tiny_int4: Quantized, tmp_path: Path) -> None:
    """Twice the same files, in both formats."""
    for name in ("gguf", "onnx"):
        first = export(tiny_int4, name, tmp_path / name / "first")  # type: ignore[arg-type]
        second = export(tiny_int4, name, tmp_path / name / "second")  # type: ignore[arg-type]
        assert first.manifest == second.manifest


def test_the_manifest_of_the_source_goes_along(tiny_int4: Quantized, tmp_path: Path) -> None:
    """Recipe, hashes and decisions stay with the artifact; kind and files are new, and shapes that were widened."""
    manifest, source = export(tiny_int4, "gguf", tmp_path / "out").manifest, tiny_int4.artifact.manifest

    assert manifest.kind == "gguf"
    weights = tuple(record.model_copy(update={"stored_shape": None}) for record in manifest.weights)
    as_quantized = manifest.model_copy(update={"kind": "quantized", "files": (), "weights": weights})
    assert as_quantized == source.model_copy(update={"files": ()})


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_the_manifest_says_which_shapes_were_widened(name: str, tiny_int4: Quantized, tmp_path: Path) -> None:
    """The vision FFN of 144 is no multiple of 32: 160 in the file, biases too; every other shape is as it was."""
    manifest = export(tiny_int4, name, tmp_path / "out").manifest  # type: ignore[arg-type]

    widened = {record.name: record.stored_shape for record in manifest.weights if record.stored_shape}
    layer = {"mlp.up": (160, 64), "mlp.up.bias": (160,), "mlp.down": (64, 160)}
    assert widened == {f"vision.layers.{number}.{part}": shape for number in (0, 1) for part, shape in layer.items()}


def test_notes_go_along(tiny_int4: Quantized, tmp_path: Path) -> None:
    """What a reader of the quantized artifact is told, a reader of the export is told too."""
    manifest = tiny_int4.artifact.manifest.model_copy(update={"notes": ("told before",)})
    noted = replace(tiny_int4, artifact=replace(tiny_int4.artifact, manifest=manifest))

    assert export(noted, "gguf", tmp_path / "out").manifest.notes == ("told before",)


def test_what_was_exported_before_is_returned(tiny_int4: Quantized, tmp_path: Path) -> None:
    """The second time there is nothing to do."""
    export(tiny_int4, "gguf", tmp_path / "out")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}

    export(tiny_int4, "gguf", tmp_path / "out")

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == times


def test_other_content_is_not_overwritten(tiny_int4: Quantized, tiny_full: Quantized, tmp_path: Path) -> None:
    """Another artifact in the same place is refused."""
    export(tiny_int4, "gguf", tmp_path / "out")

    with pytest.raises(OutputError, match="not empty"):
        export(tiny_full, "gguf", tmp_path / "out")

    Artifact.open(tmp_path / "out").verify()


def test_what_the_format_cannot_hold_is_refused(tiny_quality: Quantized, tmp_path: Path) -> None:
    """K-quants have no ONNX operator; no folder appears."""
    with pytest.raises(FormatError, match="`onnx` cannot hold"):
        export(tiny_quality, "onnx", tmp_path / "out")

    assert not list(tmp_path.iterdir())
