"""Verification: changed, missing and mixed files, and models that do not load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpmq.artifact import MANIFEST, Artifact, write_manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, EngineError, ReleaseError
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.release.record import CHECKSUMS, RECORD, Release, write_checksums
from mcpmq.release.verify import verify
from mcpmq.system.file_hash import file_sha256
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture
def release(tiny_release: Release, tmp_path: Path) -> Path:
    """Return a copy of the release that a test can change."""
    return shutil.copytree(tiny_release.path, tmp_path / "release")


def test_a_valid_release_is_loaded_by_its_engines(tiny_release: Release) -> None:
    """Hashes and provenance are checked, and both engines load their artifact."""
    checks = " ".join(verify(tiny_release.path, 1).checks)

    assert "llama.cpp" in checks
    assert "ONNX Runtime" in checks
    assert "3 files record the same source" in checks


def test_a_single_artifact_is_verified(tiny_exports: list[Artifact]) -> None:
    """An artifact outside of a release has the checks of its files."""
    checks = verify(tiny_exports[0].path, 1, load=False).checks

    assert checks == (
        "gguf: 2 files match `mcpmq.json`",
        "gguf: 2 files record the same source and recipe as the manifest",
    )


def _change(folder: Path) -> None:
    file = folder / "onnx" / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")


def _remove(folder: Path) -> None:
    (folder / "LICENSE").unlink()


def _add(folder: Path) -> None:
    (folder / "onnx" / "more.bin").write_bytes(b"x")


def _change_checksums(folder: Path) -> None:
    (folder / CHECKSUMS).write_text((folder / CHECKSUMS).read_text().replace("a", "b", 1))


def _replace_with_a_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "LICENSE").rename(outside)
    (folder / "LICENSE").symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change, "is not the released file"),
        (_remove, "`LICENSE` is missing"),
        (_add, "has 1 unlisted files, first `onnx/more.bin`"),
        (_change_checksums, "does not match `release.json`"),
        (_replace_with_a_link, "is outside of the folder"),
    ],
)
def test_a_change_of_a_release_is_an_error(release: Path, change: Callable[[Path], None], message: str) -> None:
    """A changed, missing, added or linked file is an error."""
    change(release)

    with pytest.raises(ReleaseError, match=message):
        verify(release, 1, load=False)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "gguf/../../outside"])
@pytest.mark.parametrize("field", ["file", "folder"])
def test_a_path_outside_of_the_folder_is_rejected(release: Path, path: str, field: str) -> None:
    """Paths in the record are checked before files are opened."""
    record = json.loads((release / RECORD).read_text())
    record["files" if field == "file" else "artifacts"][0]["path" if field == "file" else "folder"] = path
    (release / RECORD).write_text(json.dumps(record))

    with pytest.raises(ReleaseError, match="which is outside of the folder"):
        verify(release, 1, load=False)


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 2}'])
def test_a_broken_record_is_an_error(release: Path, content: str) -> None:
    """The error has the name of the file."""
    (release / RECORD).write_text(content)

    with pytest.raises(ReleaseError, match=r"release\.json"):
        verify(release, 1, load=False)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Return another model of the same shape and name, as GGUF and ONNX."""
    folder = tmp_path_factory.mktemp("other")
    plan = make_plan(Checkpoint.open(build_checkpoint(folder / "tiny", CONFIG, seed=7)), Recipe.load("phone-int4"))
    quantized = quantize(plan, folder / "codes")
    return [export(quantized, "gguf", folder / "gguf"), export(quantized, "onnx", folder / "onnx")]


def _rehash(release: Path, folder: str) -> None:
    """Update all hashes after files were exchanged."""
    artifact = Artifact.open(release / folder)
    files: dict[str, list[str]] = {}
    for one in artifact.manifest.files:
        files.setdefault(one.component, []).append(one.path)
    write_manifest(release / folder, artifact.manifest.model_copy(update={"files": ()}), files)
    record = json.loads((release / RECORD).read_text())
    for one in record["files"]:
        one |= {"nbytes": (release / one["path"]).stat().st_size, "sha256": file_sha256(release / one["path"])}
    (release / RECORD).write_text(json.dumps(record))
    write_checksums(release)


@pytest.mark.parametrize("component", ["language", "vision+projector"])
@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_files_of_two_models_are_an_error(
    release: Path, other_model: list[Artifact], kind: str, component: str
) -> None:
    """Files with equal names, equal shapes and valid hashes differ in the provenance that they record."""
    other = other_model[kind == "onnx"]
    for file in other.component_files(component):
        shutil.copyfile(file, release / kind / file.relative_to(other.path))
    _rehash(release, kind)

    with pytest.raises(ArtifactError, match="records source SHA-256"):
        verify(release, 1, load=False)


def test_an_artifact_of_another_model_is_an_error(release: Path, other_model: list[Artifact]) -> None:
    """A consistent artifact of another original does not match the release."""
    shutil.rmtree(release / "gguf")
    shutil.copytree(other_model[0].path, release / "gguf")
    _rehash(release, "gguf")

    with pytest.raises(ReleaseError, match="was made from another model"):
        verify(release, 1, load=False)


def test_files_of_two_recipes_are_an_error(tiny_checkpoint: Path, tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """Files of one model with different recipes are an error."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int8"))
    other = export(quantize(plan, tmp_path / "codes"), "gguf", tmp_path / "other")
    mixed = Artifact.open(shutil.copytree(tiny_exports[0].path, tmp_path / "mixed"))
    [into], [out_of] = mixed.component_files("language"), other.component_files("language")
    shutil.copyfile(out_of, into)
    files = {one.component: [one.path] for one in mixed.manifest.files}
    write_manifest(mixed.path, mixed.manifest.model_copy(update={"files": ()}), files)

    with pytest.raises(ArtifactError, match="records recipe `phone-int8`"):
        verify(mixed.path, 1, load=False)


def test_a_file_that_an_engine_does_not_load_is_an_error(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """A truncated file with a valid hash is an error when the engine loads it."""
    cut = Artifact.open(shutil.copytree(tiny_exports[1].path, tmp_path / "cut"))
    data = next(one for one in cut.manifest.files if one.path.endswith("decoder_model_merged_q4.onnx_data"))
    (cut.path / data.path).write_bytes((cut.path / data.path).read_bytes()[: data.nbytes // 2])
    files: dict[str, list[str]] = {}
    for one in cut.manifest.files:
        files.setdefault(one.component, []).append(one.path)
    write_manifest(cut.path, cut.manifest.model_copy(update={"files": ()}), files)

    with pytest.raises(EngineError, match="cannot load"):
        verify(cut.path, 1)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """The error names the missing manifest."""
    with pytest.raises(ArtifactError, match=f"no `{MANIFEST}`"):
        verify(tmp_path, 1)
