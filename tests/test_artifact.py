"""Artifacts appear whole or not at all, and know their own files."""

import errno
from pathlib import Path

import pytest

from mcpmq.artifact import MANIFEST, Artifact, appearing_whole, refuse_full_disk
from mcpmq.errors import ArtifactError, OutputError
from mcpmq.quantized_model import Quantized


def test_a_folder_appears_when_its_block_ends_well(tmp_path: Path) -> None:
    """Until then there is only the hidden one beside it."""
    with appearing_whole(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()

    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_nothing_is_left_when_the_block_fails(tmp_path: Path) -> None:
    """An error takes the half-written folder with it."""
    with pytest.raises(ZeroDivisionError), appearing_whole(tmp_path / "out") as folder:
        (folder / "a").write_text(str(1 / 0))

    assert not list(tmp_path.iterdir())


def test_a_resumable_folder_is_handed_out_again(tmp_path: Path) -> None:
    """What a killed run finished is still there for the next."""
    with pytest.raises(ZeroDivisionError), appearing_whole(tmp_path / "out", resumable=True) as folder:
        (folder / "a").write_text(str(1 / (folder / "a").write_text("")))

    with appearing_whole(tmp_path / "out", resumable=True) as folder:
        assert (folder / "a").read_text() == ""


def test_other_content_is_not_overwritten(tmp_path: Path) -> None:
    """An output that exists is refused before work."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")

    with pytest.raises(OutputError, match="not empty"), appearing_whole(tmp_path / "out"):
        pass

    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_an_empty_folder_is_a_fine_output(tmp_path: Path) -> None:
    """`mkdir out` beforehand does no harm."""
    (tmp_path / "out").mkdir()

    with appearing_whole(tmp_path / "out") as folder:
        (folder / "a").touch()

    assert (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError("9 requested, 5 written")])
def test_a_disk_that_fills_up_is_said_and_cleaned_up(tmp_path: Path, error: OSError) -> None:
    """ENOSPC, or numpy's word for it, becomes an error for the user, and nothing is left behind."""
    with pytest.raises(OutputError, match="disk is full"), appearing_whole(tmp_path / "out"):
        raise error

    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_refused_beforehand(tmp_path: Path) -> None:
    """What cannot end is not begun."""
    with pytest.raises(OutputError, match="needs"):
        refuse_full_disk(tmp_path / "a" / "b", 10**18)


def test_a_changed_file_is_found(tiny_int4: Quantized, tmp_path: Path) -> None:
    """verify() hashes what the manifest lists."""
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


def test_bytes_by_component_add_up(tiny_int4: Quantized) -> None:
    """Every file belongs to one component."""
    sizes = tiny_int4.artifact.nbytes_by_component()

    assert {"vision", "projector", "language", "embedding", "head", "model"} == sizes.keys()
    assert sum(sizes.values()) == sum(
        file.stat().st_size for file in tiny_int4.path.rglob("*") if file.is_file() and file.name != MANIFEST
    )


@pytest.mark.parametrize("text", ["{", "{}", '{"schema_version": 2}'])
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """The error names the manifest and what it lacks."""
    (tmp_path / MANIFEST).write_text(text)

    with pytest.raises(ArtifactError, match=r"mcpmq\.json"):
        Artifact.open(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """No manifest, no artifact."""
    with pytest.raises(ArtifactError, match=r"no `mcpmq\.json`"):
        Artifact.open(tmp_path)
