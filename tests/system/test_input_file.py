"""The guard of files in folders of unknown origin."""

import os
import socket
from pathlib import Path

import pytest

from mcpmq.errors import ArtifactError, CheckpointError, DatasetError
from mcpmq.system.input_file import check_file, check_files, read_text_file


def test_regular_files_and_links_inside_of_the_folder_pass(tmp_path: Path) -> None:
    """A link to a file of the same folder is allowed, also if the folder itself is a link."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file.txt").write_text("abc")
    (tmp_path / "a" / "link.txt").symlink_to("file.txt")
    (tmp_path / "b").symlink_to("a")
    for folder in ("a", "b"):
        check_files(tmp_path / folder, ["*.txt"], CheckpointError, 3)


def test_links_into_the_blobs_of_a_hub_cache_pass(tmp_path: Path) -> None:
    """The cache of huggingface_hub consists of such links; blobs of another repository are outside."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    for folder in (snapshot, tmp_path / "models--owner--name" / "blobs", tmp_path / "models--owner--other" / "blobs"):
        folder.mkdir(parents=True)
        (folder / "abc").touch()
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    check_file(snapshot / "config.json", snapshot, CheckpointError)
    (snapshot / "vocab.txt").symlink_to("../../../models--owner--other/blobs/abc")
    with pytest.raises(CheckpointError, match="outside of the folder"):
        check_file(snapshot / "vocab.txt", snapshot, CheckpointError)


def special_file(kind: str, path: Path) -> None:
    """Create a file that must not be read."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        targets = {"device": "/dev/zero", "outside": "/etc/passwd", "dangling": "nowhere", "circle": str(path)}
        path.symlink_to(targets[kind])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("FIFO", "is not a regular file but a FIFO"),
        ("folder", "is not a regular file but a folder"),
        ("socket", "is not a regular file but a socket"),
        ("device", "is not a regular file but a device"),
        ("outside", "is outside of the folder, or a link out of it: `/etc/passwd`"),
        ("dangling", "cannot be read: No such file or directory"),
        ("circle", "cannot be read: "),
    ],
)
def test_other_files_are_rejected(kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the file and its kind; no file is opened, so that a FIFO does not block."""
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    special_file(kind, Path("notes.txt").absolute() if kind == "circle" else Path("notes.txt"))
    with pytest.raises(ArtifactError, match=message) as caught:
        check_files(Path(), ["*.txt"], ArtifactError)
    assert caught.value.hint


def test_a_large_file_is_rejected(tmp_path: Path) -> None:
    """The error has both sizes; a sparse file has the size that readers would see."""
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="has 1,099,511,627,776 bytes, more than 1,000"):
        check_file(tmp_path / "a.txt", tmp_path, CheckpointError, 1000)
    check_file(tmp_path / "a.txt", tmp_path, CheckpointError)


def test_a_path_out_of_the_folder_is_rejected(tmp_path: Path) -> None:
    """Without any link."""
    (tmp_path / "a").mkdir()
    (tmp_path / "secret").touch()
    with pytest.raises(CheckpointError, match="outside of the folder"):
        check_file(tmp_path / "a" / ".." / "secret", tmp_path / "a", CheckpointError)


def test_a_named_file_can_be_a_link(tmp_path: Path) -> None:
    """A user names the file, so a link is followed; a byte order mark is removed."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "text").write_bytes(b"\xef\xbb\xbfscores")
    (tmp_path / "link").symlink_to("a/text")

    assert read_text_file(tmp_path / "link", DatasetError, "a hint", 9) == "scores"
    with pytest.raises(DatasetError, match="has 9 bytes, more than 8"):
        read_text_file(tmp_path / "link", DatasetError, "a hint", 8)


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "device", "dangling", "circle", "missing", "null"])
def test_another_named_file_is_an_error(kind: str, tmp_path: Path) -> None:
    """The file is not read, and the error has its path."""
    file = tmp_path / ("file\0" if kind == "null" else "file")
    if kind not in ("missing", "null"):
        special_file(kind, file)

    with pytest.raises(DatasetError, match="file") as caught:
        read_text_file(file, DatasetError, "a hint", 9)
    assert caught.value.hint
