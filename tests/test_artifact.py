"""Artifacts: atomic output folders, file hashes, manifests."""

import errno
from pathlib import Path

import pytest

from mcpmq.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    SourceRecord,
    atomic_dir,
    check_disk_space,
    rewrite_file,
    write_manifest,
)
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.quantized_model import QuantizedModel


def test_the_output_is_renamed_when_the_block_succeeds(tmp_path: Path) -> None:
    """Until then the output does not exist."""
    with atomic_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()

    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_the_temporary_folder_is_removed_when_the_block_fails(tmp_path: Path) -> None:
    """After an error no file is left."""
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "out") as folder:
        (folder / "a").write_text(str(1 / 0))

    assert not list(tmp_path.iterdir())


def test_a_resumable_folder_is_yielded_again(tmp_path: Path) -> None:
    """The next run gets the files of an interrupted run."""
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "out", resumable=True) as folder:
        (folder / "a").write_text(str(1 / (folder / "a").write_text("")))

    with atomic_dir(tmp_path / "out", resumable=True) as folder:
        assert (folder / "a").read_text() == ""


def test_other_content_is_not_overwritten(tmp_path: Path) -> None:
    """An output that is not empty is an error before work."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")

    with pytest.raises(OutputError, match="not empty"), atomic_dir(tmp_path / "out"):
        pass

    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_an_empty_folder_is_a_valid_output(tmp_path: Path) -> None:
    """The output may exist if it is empty."""
    (tmp_path / "out").mkdir()

    with atomic_dir(tmp_path / "out") as folder:
        (folder / "a").touch()

    assert (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError("9 requested, 5 written")])
def test_a_full_disk_is_an_error_and_no_file_is_left(tmp_path: Path, error: OSError) -> None:
    """ENOSPC, and the error of numpy without a number, become an OutputError."""
    with pytest.raises(OutputError, match="disk is full"), atomic_dir(tmp_path / "out"):
        raise error

    assert not list(tmp_path.iterdir())


def test_too_little_free_space_is_an_error_before_work(tmp_path: Path) -> None:
    """The free space is compared with the required size."""
    with pytest.raises(OutputError, match="needs"):
        check_disk_space(tmp_path / "a" / "b", 10**18)


def test_a_changed_file_is_an_error(tiny_int4: QuantizedModel, tmp_path: Path) -> None:
    """`verify` compares the SHA-256 of every file with the manifest."""
    tiny_int4.artifact.verify()
    copy = tmp_path / "copy"
    copy.mkdir()
    for record in tiny_int4.artifact.manifest.files:
        (copy / record.path).parent.mkdir(exist_ok=True)
        (copy / record.path).write_bytes((tiny_int4.path / record.path).read_bytes())
    (copy / MANIFEST).write_bytes((tiny_int4.path / MANIFEST).read_bytes())
    (copy / "config.json").write_text("{}")

    with pytest.raises(ArtifactError, match=r"config\.json"):
        Artifact.open(copy).verify()


def test_bytes_by_component_add_up(tiny_int4: QuantizedModel) -> None:
    """The sizes of all components sum to the size of all files."""
    sizes = tiny_int4.artifact.nbytes_by_component()

    assert {"vision", "projector", "language", "embedding", "head", "model"} == sizes.keys()
    assert sum(sizes.values()) == sum(
        file.stat().st_size for file in tiny_int4.path.rglob("*") if file.is_file() and file.name != MANIFEST
    )


@pytest.mark.parametrize("text", ["{", "{}", '{"schema_version": 2}'])
def test_a_broken_manifest_is_rejected(tmp_path: Path, text: str) -> None:
    """The error names the manifest."""
    (tmp_path / MANIFEST).write_text(text)

    with pytest.raises(ArtifactError, match=r"mcpmq\.json"):
        Artifact.open(tmp_path)


def test_a_folder_without_a_manifest_is_rejected(tmp_path: Path) -> None:
    """The error names the missing manifest."""
    with pytest.raises(ArtifactError, match=r"no `mcpmq\.json`"):
        Artifact.open(tmp_path)


def test_the_hash_does_not_depend_on_the_model_card(tmp_path: Path) -> None:
    """Another model card changes the manifest only; another weight file changes the hash of the artifact."""
    source = SourceRecord(name="a", sha256="0" * 64, nbytes=1)
    manifest = Manifest(kind="gptq", family="f", source=source, recipe={}, versions={}, weights=())
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "weights").write_text("1")
    write_manifest(tmp_path, manifest, {"model": ["README.md", "weights"]})
    first = Artifact.open(tmp_path)

    rewrite_file(first, "README.md", "another card")
    second = Artifact.open(tmp_path)
    second.verify()
    rewrite_file(second, "weights", "2")

    assert second.sha256 == first.sha256
    assert second.manifest != first.manifest
    assert Artifact.open(tmp_path).sha256 != first.sha256
