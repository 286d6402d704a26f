"""Outputs: rejected paths, locks, and folders that appear complete or not at all."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from mcpmq.errors import OutputError
from mcpmq.system.output import (
    atomic_dir,
    check_disk_space,
    check_file,
    check_folder,
    check_output,
    check_outside,
    lock_folder,
    lock_output,
    output_errors,
    remove_stale_lock,
)


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


def test_the_folder_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    """Without `resumable` no file of an earlier run is in the output."""
    (tmp_path / ".out.partial" / "nested").mkdir(parents=True)

    with atomic_dir(tmp_path / "out") as folder:
        (folder / "a").touch()

    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


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


def test_errors_of_the_temporary_folder_name_the_output(tmp_path: Path) -> None:
    """EFBIG and errors about a file of the output become an OutputError; errors about other files do not."""
    with pytest.raises(OutputError, match="too large"), atomic_dir(tmp_path / "out"):
        raise OSError(errno.EFBIG, "File too large")
    with (
        pytest.raises(OutputError, match=r"out` cannot be written: Is a directory"),
        atomic_dir(tmp_path / "out") as it,
    ):
        it.write_text("")
    with pytest.raises(FileNotFoundError), atomic_dir(tmp_path / "out"):
        (tmp_path / "another").read_text()


def test_too_little_free_space_is_an_error_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free space, with that of an unfinished run, is compared with the required size."""
    with pytest.raises(OutputError, match="needs"):
        check_disk_space(tmp_path / "a" / "b", 10**18)

    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "block").write_bytes(bytes(70))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 30}))
    check_disk_space(tmp_path / "out", 100)
    with pytest.raises(OutputError, match="needs 101 bytes, the disk has 30 free"):
        check_disk_space(tmp_path / "out", 101)


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "FIFO"])
def test_only_a_folder_is_replaced(tmp_path: Path, kind: str) -> None:
    """Files, links to folders, dangling links and FIFOs are errors, and stay."""
    out = tmp_path / "out"
    if kind == "file":
        out.touch()
    elif kind == "FIFO":
        os.mkfifo(out)
    else:
        out.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir() if kind == "link" else None

    expected = "is a symbolic link to" if "link" in kind else "is not a folder"
    with pytest.raises(OutputError, match=expected), atomic_dir(out):
        pass

    assert out.is_symlink() or out.exists()
    assert not (tmp_path / "elsewhere" / "a").exists()


def test_a_mount_point_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount point cannot be replaced by a rename; the hint is a folder in it."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")

    with pytest.raises(OutputError, match="is a mount point") as caught:
        check_output(tmp_path / "out")

    assert str(tmp_path / "out" / "out") in caught.value.hint
    assert check_folder(tmp_path / "out")  # its subfolders are valid outputs


@pytest.mark.parametrize("name", ["a" * 250, "a\0b", "a" * 300, "file/out"])
def test_names_that_cannot_be_created_are_errors(tmp_path: Path, name: str) -> None:
    """A name that is too long with its suffix, a NUL, and a file as parent are errors before work."""
    (tmp_path / "file").touch()

    for check in (check_output, check_folder):
        with pytest.raises(OutputError, match="cannot be written"):
            check(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to every folder")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    """The lock of an empty output on a read-only disk cannot be created."""
    (tmp_path / "parent" / "out").mkdir(parents=True)
    (tmp_path / "parent").chmod(0o500)

    with pytest.raises(OutputError, match="Permission denied"), lock_output(tmp_path / "parent" / "out"):
        pass


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in place of the temporary folder, or of the lock, is an error, and its target is unchanged."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("precious")
    (tmp_path / ".out.partial").symlink_to(target)
    (tmp_path / ".out.lock").symlink_to(target / "file")

    for resumable in (True, False):
        with pytest.raises(OutputError, match="is not the folder of an unfinished run"):
            atomic_dir(tmp_path / "out", resumable=resumable).__enter__()
    with pytest.raises(OutputError, match="symbolic links"), lock_output(tmp_path / "out"):
        pass

    assert (target / "file").read_text() == "precious"
    assert [path.name for path in target.iterdir()] == ["file"]


def test_an_input_is_not_an_output(tmp_path: Path) -> None:
    """No output is an input folder, also through links or `..`; only folders may be inside of one."""
    given = tmp_path / "given"
    (given / "nested").mkdir(parents=True)
    (tmp_path / "link").symlink_to(given / "nested")
    inputs = {given: "checkpoint", tmp_path / "missing": "calibration set"}

    for same in (given, given / ".", tmp_path / "link" / ".."):
        for check in (check_outside, check_folder):
            with pytest.raises(OutputError, match=f"is the checkpoint `{given}`"):
                check(same, inputs)
    for inside in (given / "out", given / "a" / "b", tmp_path / "link" / "out", tmp_path / "x" / ".." / "given" / "y"):
        with pytest.raises(OutputError, match=f"{re.escape(inside.name)}` is inside the checkpoint `{given}`"):
            check_outside(inside, inputs)
    assert not check_folder(given / "out", inputs)
    check_outside(tmp_path / "given-2", inputs)
    check_outside(tmp_path, inputs)


def test_one_process_writes_an_output(tmp_path: Path) -> None:
    """The second writer gets an error with the process that has the lock; the lock file is removed in the end."""
    with lock_output(tmp_path / "new" / "out"):
        assert (tmp_path / "new" / ".out.lock").exists()
        with pytest.raises(OutputError, match=f"out` is being written by process {os.getpid()}$") as caught:
            lock_output(tmp_path / "new" / "out").__enter__()
        with lock_output(tmp_path / "new" / "other"):
            pass

    assert "wait until that process ends" in caught.value.hint
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_of_several_outputs_has_one_writer(tmp_path: Path) -> None:
    """The lock is in the folder; a new folder is removed if nothing was written."""
    held = pytest.raises(OutputError, match="a/out` is being written by process")
    with lock_folder(tmp_path / "a" / "out"), held:
        lock_folder(tmp_path / "a" / "out").__enter__()
    assert not (tmp_path / "a" / "out").exists()

    with lock_folder(tmp_path / "a" / "out"):
        (tmp_path / "a" / "out" / "report.json").touch()
    assert [path.name for path in (tmp_path / "a" / "out").iterdir()] == ["report.json"]

    (tmp_path / "empty").mkdir()
    with lock_folder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


def test_errors_of_paths_become_output_errors(tmp_path: Path) -> None:
    """A NUL in a name is a ValueError, a loop of links an OSError or a RuntimeError."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match=r"cannot be written: embedded null"), output_errors(Path("a\0b")):
        Path("a\0b").lstat()
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(tmp_path / "loop" / "out")


def test_only_a_lock_without_a_holder_is_removed(tmp_path: Path) -> None:
    """The file of a killed run is removed; a lock that is held stays."""
    lock = tmp_path / ".out.lock"
    with lock_output(tmp_path / "out"):
        remove_stale_lock(tmp_path / "out")
        assert lock.exists()

    lock.write_text("4242 host\n")
    remove_stale_lock(tmp_path / "out")
    assert not lock.exists()
    remove_stale_lock(tmp_path / "out")


def test_a_complete_output_has_no_lock_after_the_next_run(tmp_path: Path) -> None:
    """The next run of a command that does not resume rejects the output and removes the lock file of the killed run."""
    (tmp_path / "out").mkdir()
    for path in (tmp_path / "out" / "file", tmp_path / ".out.lock"):
        path.touch()

    with pytest.raises(OutputError, match="exists and is not empty"):
        check_output(tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_of_the_same_command_is_replaced(tmp_path: Path) -> None:
    """Missing and empty files, and files with the beginning, are valid; others, links and folders are errors."""
    for name, content in (("own", "# Recipe\nx"), ("empty", ""), ("foreign", "# Rec"), ("other", "precious")):
        (tmp_path / name).write_text(content)
    (tmp_path / "link").symlink_to("own")
    for name in ("own", "empty", "missing"):
        check_file(tmp_path / name, {}, "# Recipe")
    for name in ("foreign", "other"):
        with pytest.raises(OutputError, match="was not written by this command"):
            check_file(tmp_path / name, {}, "# Recipe")
    for path in (tmp_path / "link", tmp_path):
        with pytest.raises(OutputError, match="is not a regular file"):
            check_file(path, {}, "# Recipe")
    with pytest.raises(OutputError, match="is inside the checkpoint"):
        check_file(tmp_path / "own", {tmp_path: "checkpoint"}, "# Recipe")
