"""Tests of the choice of an artifact in a folder."""

import json
import shutil
from pathlib import Path

import pytest

from mcpmq.errors import ArtifactError, MissingExtra
from mcpmq.release.record import Release
from mcpmq.serving.artifacts import find_artifact, is_checkpoint, open_engine


@pytest.mark.parametrize(("removed", "kind"), [((), "gguf"), (("gguf",), "onnx"), (("gguf", "onnx"), "quantized")])
def test_a_conversion_gives_gguf_then_onnx_then_the_quantized_model(
    reference_folder: Path, tmp_path: Path, removed: tuple[str, ...], kind: str
) -> None:
    """The first of the formats that exist is chosen."""
    for name in {"gguf", "onnx", "quantized"} - set(removed):
        (tmp_path / name).mkdir()
        shutil.copy(reference_folder / name / "mcpmq.json", tmp_path / name)

    assert find_artifact(tmp_path).manifest.kind == kind


def test_a_release_gives_gguf(tiny_release: Release) -> None:
    """The artifacts of a release are in its folders."""
    assert find_artifact(tiny_release.path).path == tiny_release.path / "gguf"


def test_an_artifact_is_itself(reference_folder: Path) -> None:
    """The folder of an artifact needs no choice, also with others beside it."""
    assert find_artifact(reference_folder / "onnx").manifest.kind == "onnx"
    assert not is_checkpoint(reference_folder / "onnx")


def test_errors_name_what_is_there(reference_folder: Path, tmp_path: Path) -> None:
    """A missing folder, an empty one, one with other files, a file and an importance matrix are errors."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "files").mkdir()
    for name in "abcdefg":
        (tmp_path / "files" / name).touch()
    (tmp_path / "imatrix").mkdir()
    manifest = json.loads((reference_folder / "quantized" / "mcpmq.json").read_text())
    (tmp_path / "imatrix" / "mcpmq.json").write_text(json.dumps({**manifest, "kind": "imatrix", "files": []}))
    found = {"none": "does not exist", "empty": "it is empty", "files": "contains a, b, c, d, e and others"}

    for name, message in {**found, "files/a": "not a folder", "imatrix": "of the kind imatrix"}.items():
        with pytest.raises(ArtifactError, match=message) as caught:
            find_artifact(tmp_path / name)
        assert "mcpmq convert" in caught.value.hint


def test_a_missing_engine_is_an_error(reference_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names the extra of the format."""
    monkeypatch.setattr("mcpmq.formats.find_spec", lambda _: None)

    with pytest.raises(MissingExtra) as caught:
        open_engine(reference_folder / "gguf", threads=1)
    assert caught.value.hint == "run `pip install 'mcpmq[gguf]'`"
