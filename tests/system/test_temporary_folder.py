"""Temporary folders: private, removed after errors, and removed by the next run after a killed one."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.errors import OutputError
from mcpmq.system.temporary_folder import remove_stale_folders, temporary_folder


def test_a_folder_is_private_and_removed(tmp_path: Path) -> None:
    """The mode is 0700, with any umask; the folder and its files are removed at the end of the block."""
    before = os.umask(0)
    try:
        with temporary_folder(tmp_path) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "file").write_text("content")
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_after_an_error(tmp_path: Path) -> None:
    """The exception passes through."""
    with pytest.raises(IsADirectoryError), temporary_folder(tmp_path) as folder:
        folder.write_text("content")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    """A folder is stale as soon as its process has ended; until then it is kept."""
    code = "import sys, time, pathlib\nfrom mcpmq.system.temporary_folder import temporary_folder\n"
    code += (
        "with temporary_folder(pathlib.Path(sys.argv[1])) as f: (f / 'x').touch(); print(f, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    folder = Path(process.stdout.readline().rstrip())
    remove_stale_folders(tmp_path)
    assert (folder / "x").exists()

    process.send_signal(signal.SIGKILL)
    process.communicate()
    remove_stale_folders(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_temporary_folders_are_removed(tmp_path: Path) -> None:
    """Folders of other names, files and links keep their place; the target of a link is not touched."""
    kept = tmp_path / "other"
    kept.mkdir()
    (kept / "file").touch()
    (tmp_path / "mcpmq-results").mkdir()
    (tmp_path / "mcpmq-1-abcdefgh").symlink_to(kept)
    (tmp_path / "mcpmq-1-abcdefgi").touch()
    (tmp_path / "mcpmq-1-abcdefgj").mkdir()
    remove_stale_folders(tmp_path)
    names = ["mcpmq-1-abcdefgh", "mcpmq-1-abcdefgi", "mcpmq-results", "other"]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    assert (kept / "file").exists()


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    """The error has the place and the reason; a missing place has no stale folders."""
    with pytest.raises(
        OutputError, match="a temporary folder cannot be created in `.*missing`: No such file"
    ) as caught:
        temporary_folder(tmp_path / "missing").__enter__()
    assert "set TMPDIR" in caught.value.hint
    remove_stale_folders(tmp_path / "missing")
