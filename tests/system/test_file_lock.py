"""Locks between processes: refused with the holder, released by a kill, never shared."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mcpmq.system.file_lock import LockHeldError, exclusive_lock

HOLD = """
import sys, time
from pathlib import Path
from mcpmq.system.file_lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    """While it runs, the error has its process id; after SIGKILL its file remains and is not a lock."""
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(LockHeldError, match=f"^process {process.pid}$"):
            exclusive_lock(file).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()

    assert file.exists()
    with exclusive_lock(file):
        assert file.read_text().split()[0] == str(os.getpid())
    assert not file.exists()


def test_the_host_of_another_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared disk the process can be on another host; a file without a process id names none."""
    with exclusive_lock(tmp_path / "lock"):
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        with pytest.raises(LockHeldError, match=rf"^process {os.getpid()} on \S+$"):
            exclusive_lock(tmp_path / "lock").__enter__()
        (tmp_path / "lock").write_text("")
        with pytest.raises(LockHeldError, match="^another process$"):
            exclusive_lock(tmp_path / "lock").__enter__()


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Eight threads lock and unlock; although every holder removes the file, two never hold the lock."""
    holders, most, tries = [], [], 200

    def run() -> None:
        for _ in range(tries):
            try:
                with exclusive_lock(tmp_path / "lock"):
                    holders.append(1)
                    most.append(len(holders))
                    holders.pop()
            except LockHeldError:
                pass

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(most) == {1}
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "FIFO", "folder"])
def test_a_file_of_another_kind_is_not_changed(tmp_path: Path, kind: str) -> None:
    """A planted link, FIFO or folder in place of the lock file is an error, and the target of a link is unchanged."""
    (tmp_path / "target").write_text("precious")
    lock = tmp_path / "lock"
    if kind == "link":
        lock.symlink_to(tmp_path / "target")
    elif kind == "hard link":
        lock.hardlink_to(tmp_path / "target")
    elif kind == "FIFO":
        os.mkfifo(lock)
    else:
        lock.mkdir()

    with pytest.raises(OSError, match="symbolic links|not a regular file|Is a directory"):
        exclusive_lock(lock).__enter__()

    assert (tmp_path / "target").read_text() == "precious"
