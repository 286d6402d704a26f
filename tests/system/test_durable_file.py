"""Files that are complete on disk before they get their names."""

import errno
import os
from pathlib import Path

import pytest

from mcpmq.system.durable_file import move_durably, sync_tree, write_durably


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of synced paths, and of renamed files, in order."""
    found: list[str] = []
    replace = Path.replace

    def sync(descriptor: int) -> None:
        found.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")

    def rename(self: Path, target: Path) -> Path:
        found.append(f"rename {self.name} {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    return found


def test_a_file_is_synced_before_its_name_and_the_folder_after(tmp_path: Path, calls: list[str]) -> None:
    """After a power failure the file has its old content or its new, never none."""
    (tmp_path / "a").write_text("old")

    write_durably(tmp_path / "a", "nëw")

    assert calls == ["sync .a.partial", "rename .a.partial a", f"sync {tmp_path.name}"]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"n\xc3\xabw"]


def test_a_moved_file_is_synced(tmp_path: Path, calls: list[str]) -> None:
    """A file that another library wrote is synced before it is renamed."""
    (tmp_path / "a.partial").write_text("a")

    move_durably(tmp_path / "a.partial", tmp_path / "a")

    assert calls == ["sync a.partial", "rename a.partial a", f"sync {tmp_path.name}"]


def test_a_tree_is_synced_from_its_files_to_its_root(tmp_path: Path, calls: list[str]) -> None:
    """Files come before the folder that names them."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").touch()
    (tmp_path / "a").touch()

    sync_tree(tmp_path)

    assert calls == ["sync c", "sync b", "sync a", f"sync {tmp_path.name}"]


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    """A link in place of the file, or of its temporary file, is removed; its target is unchanged."""
    (tmp_path / "target").write_text("precious")
    for name in ("a", ".a.partial"):
        (tmp_path / name).symlink_to(tmp_path / "target")

    write_durably(tmp_path / "a", b"content")

    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "a").read_text() == "content"
    assert not (tmp_path / "a").is_symlink()


def test_no_temporary_file_is_left_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at the sync leaves the old file; a file system without sync of folders is not an error."""
    (tmp_path / "a").write_text("old")

    def fail(number: int) -> None:
        def sync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", sync)

    fail(errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "a", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]
    fail(errno.EINVAL)
    write_durably(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
