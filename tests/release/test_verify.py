"""A release that was changed, mixed or is not loadable is found out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpmq.artifact import MANIFEST, Artifact, sha256_of, write_manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, EngineError, ReleaseError
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.release.record import RECORD, SUMS, Release, write_sums
from mcpmq.release.verify import verify
from tests.tiny import CONFIG, build_checkpoint


@pytest.fixture
def release(tiny_release: Release, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(tiny_release.path, tmp_path / "release")


def test_a_good_release_is_loaded_by_its_engines(tiny_release: Release) -> None:
    """Hashes, origins, and both engines."""
    found = " ".join(verify(tiny_release.path, 1).found)

    assert "llama.cpp" in found
    assert "ONNX Runtime" in found
    assert "3 files say that they are of one model" in found


def test_an_artifact_alone_is_verified_too(tiny_exports: list[Artifact]) -> None:
    """Without a release around it."""
    found = verify(tiny_exports[0].path, 1, load=False).found

    assert found == (
        "gguf: 2 files are those of `mcpmq.json`",
        "gguf: 2 files say that they are of one model and one recipe",
    )


def _change(folder: Path) -> None:
    file = folder / "onnx" / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")


def _remove(folder: Path) -> None:
    (folder / "LICENSE").unlink()


def _add(folder: Path) -> None:
    (folder / "onnx" / "more.bin").write_bytes(b"x")


def _change_sums(folder: Path) -> None:
    (folder / SUMS).write_text((folder / SUMS).read_text().replace("a", "b", 1))


def _replace_by_a_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "LICENSE").rename(outside)
    (folder / "LICENSE").symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change, "is not the file that was released"),
        (_remove, "`LICENSE` is missing"),
        (_add, "holds 1 files that it does not list, first `onnx/more.bin`"),
        (_change_sums, "does not agree with `release.json`"),
        (_replace_by_a_link, "leaves the folder"),
    ],
)
def test_damage_is_found(release: Path, damage: Callable[[Path], None], message: str) -> None:
    """Whatever was changed after packaging."""
    damage(release)

    with pytest.raises(ReleaseError, match=message):
        verify(release, 1, load=False)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "gguf/../../outside"])
@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_record_that_leaves_the_folder_is_refused(release: Path, path: str, where: str) -> None:
    """Before anything that it names is opened."""
    record = json.loads((release / RECORD).read_text())
    record["files" if where == "file" else "artifacts"][0]["path" if where == "file" else "folder"] = path
    (release / RECORD).write_text(json.dumps(record))

    with pytest.raises(ReleaseError, match="which leaves the folder"):
        verify(release, 1, load=False)


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 2}'])
def test_a_broken_record_is_an_error(release: Path, content: str) -> None:
    """With the name of the file."""
    (release / RECORD).write_text(content)

    with pytest.raises(ReleaseError, match=r"release\.json"):
        verify(release, 1, load=False)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Another model of the same shape and name, as GGUF and ONNX."""
    folder = tmp_path_factory.mktemp("stranger")
    plan = make_plan(Checkpoint.open(build_checkpoint(folder / "tiny", CONFIG, seed=7)), Recipe.load("phone-int4"))
    quantized = quantize(plan, folder / "codes")
    return [export(quantized, "gguf", folder / "gguf"), export(quantized, "onnx", folder / "onnx")]


def _rehash(release: Path, folder: str) -> None:
    """As one does who mixes files and wants the hashes to be right."""
    artifact = Artifact.open(release / folder)
    files: dict[str, list[str]] = {}
    for one in artifact.manifest.files:
        files.setdefault(one.component, []).append(one.path)
    write_manifest(release / folder, artifact.manifest.model_copy(update={"files": ()}), files)
    record = json.loads((release / RECORD).read_text())
    for one in record["files"]:
        one |= {"nbytes": (release / one["path"]).stat().st_size, "sha256": sha256_of(release / one["path"])}
    (release / RECORD).write_text(json.dumps(record))
    write_sums(release)


@pytest.mark.parametrize("component", ["language", "vision+projector"])
@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_files_of_two_models_do_not_pass_for_one(
    release: Path, stranger: list[Artifact], kind: str, component: str
) -> None:
    """Same names, same shapes, right hashes: what is written inside tells them apart."""
    other = stranger[kind == "onnx"]
    for file in other.files_of(component):
        shutil.copyfile(file, release / kind / file.relative_to(other.path))
    _rehash(release, kind)

    with pytest.raises(ArtifactError, match="was made from a model of SHA-256"):
        verify(release, 1, load=False)


def test_an_artifact_of_another_model_is_found(release: Path, stranger: list[Artifact]) -> None:
    """It agrees with itself, not with the release."""
    shutil.rmtree(release / "gguf")
    shutil.copytree(stranger[0].path, release / "gguf")
    _rehash(release, "gguf")

    with pytest.raises(ReleaseError, match="was made from another model"):
        verify(release, 1, load=False)


def test_files_of_two_recipes_do_not_pass_for_one(
    tiny_checkpoint: Path, tiny_exports: list[Artifact], tmp_path: Path
) -> None:
    """Of the same model, too."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int8"))
    other = export(quantize(plan, tmp_path / "codes"), "gguf", tmp_path / "other")
    mixed = Artifact.open(shutil.copytree(tiny_exports[0].path, tmp_path / "mixed"))
    [into], [out_of] = mixed.files_of("language"), other.files_of("language")
    shutil.copyfile(out_of, into)
    files = {one.component: [one.path] for one in mixed.manifest.files}
    write_manifest(mixed.path, mixed.manifest.model_copy(update={"files": ()}), files)

    with pytest.raises(ArtifactError, match="was made by recipe `phone-int8`"):
        verify(mixed.path, 1, load=False)


def test_what_an_engine_does_not_load_is_an_error(tiny_exports: list[Artifact], tmp_path: Path) -> None:
    """Right hashes of a file that was cut short before they were taken."""
    cut = Artifact.open(shutil.copytree(tiny_exports[1].path, tmp_path / "cut"))
    data = next(one for one in cut.manifest.files if one.path.endswith("decoder_model_merged_q4.onnx_data"))
    (cut.path / data.path).write_bytes((cut.path / data.path).read_bytes()[: data.nbytes // 2])
    files: dict[str, list[str]] = {}
    for one in cut.manifest.files:
        files.setdefault(one.component, []).append(one.path)
    write_manifest(cut.path, cut.manifest.model_copy(update={"files": ()}), files)

    with pytest.raises(EngineError, match="cannot load"):
        verify(cut.path, 1)


def test_nothing_is_no_release(tmp_path: Path) -> None:
    """An empty folder."""
    with pytest.raises(ArtifactError, match=f"no `{MANIFEST}`"):
        verify(tmp_path, 1)
