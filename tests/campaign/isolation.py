"""Run `mcpmq` commands in forked processes with limits of time, memory and file size, and with injected faults."""

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

MODULES = ("pipeline", "release", "inspect")
LIBRARIES = (
    "mcpmq.calibrate.imatrix",
    "mcpmq.convert",
    "mcpmq.export",
    "mcpmq.formats.gguf.writer",
    "mcpmq.formats.hf.writer",
    "mcpmq.formats.onnx.layout",
    "mcpmq.mixed_precision",
    "mcpmq.quantize",
    "mcpmq.release.package",
    "mcpmq.release.verify",
    "mcpmq.ui",
)
CRASHED = 70  # exit code of a command that ended with a traceback
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "fcntl.flock")
POLL_SECONDS = 0.002
ORPHAN_SECONDS = 5.0  # for the workers of a killed command to end

Hook = Callable[[str, int], None]  # with the name of a change and its number


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one command; memory is address space in addition to that of the parent process."""

    seconds: float = 60.0
    memory_nbytes: int = 2 << 30
    file_nbytes: int | None = None


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code, output and duration of a command; a negative code is a signal."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False

    @property
    def problem(self) -> str:
        """Return the reason why the outcome is not acceptable, or an empty string."""
        if self.timed_out:
            return f"no end after {self.seconds:.0f} s"
        if "Traceback (most recent call last)" in self.stderr or self.code == CRASHED:
            return "traceback: " + (self.stderr.strip().splitlines() or ["none"])[-1][:300]
        if "out of memory" in self.stderr:
            return "memory limit exceeded"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if self.code == 1 and not ("error: " in self.stderr and "hint: " in self.stderr):
            return f"no hint: {self.stderr.strip()[:300]}"
        return "" if self.code in (0, 1, 2, 3) else f"exit code {self.code}"


@dataclass(slots=True)
class Process:
    """A running command."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`, or for the end of the command, which remains to be waited for."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(POLL_SECONDS)

    def kill_after(self, seconds: float) -> None:
        """Send SIGKILL to the command after `seconds`, not to its workers, and wait for its end."""
        self.sleep(seconds)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def wait(self, seconds: float) -> Outcome:
        """Wait for the end; kill the command and its workers after `seconds`."""
        status = self._poll(self.started + seconds)
        if timed_out := status is None:
            os.killpg(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
        assert status is not None
        texts = [(self.log / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code, texts[0], texts[1], time.monotonic() - self.started, timed_out)

    def _poll(self, end: float) -> int | None:
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            if time.monotonic() > end:
                return None
            time.sleep(POLL_SECONDS)

    def orphans(self) -> list[int]:
        """Return the processes of the session that remain after the command, once they had time to end."""
        end = time.monotonic() + ORPHAN_SECONDS
        while (found := _session_members(self.pid)) and time.monotonic() < end:
            time.sleep(POLL_SECONDS * 10)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return found


def _session_members(session: int) -> list[int]:
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(sid) == session and state not in "ZX":
            members.append(int(folder.name))
    return members


def preload() -> None:
    """Import the modules of all commands, so that a forked process starts at once; from a process of one thread."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in (*(f"mcpmq.cli.{name}" for name in MODULES), *LIBRARIES):
        import_module(module)


def start(
    arguments: Sequence[object],
    folder: Path,
    limits: Limits = DEFAULT_LIMITS,
    hook: Hook | None = None,
    log: Path | None = None,
) -> Process:
    """Start a command in a process of its own session; `folder` has its home and its temporary folder.

    `hook` is called before every change of a file in `folder`. Output goes to a folder in `log`, by default beside
    `folder`.
    """
    log = Path(tempfile.mkdtemp(prefix="log-", dir=log or folder.parent))
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run_child([str(argument) for argument in arguments], folder, log, limits, hook)
    return Process(pid, log)


def run(
    arguments: Sequence[object],
    folder: Path,
    limits: Limits = DEFAULT_LIMITS,
    hook: Hook | None = None,
    log: Path | None = None,
) -> Outcome:
    """Run a command to its end."""
    return start(arguments, folder, limits, hook, log).wait(limits.seconds)


def _run_child(arguments: list[str], folder: Path, log: Path, limits: Limits, hook: Hook | None) -> None:
    code = CRASHED
    try:
        os.setsid()
        _redirect(log)
        os.chdir(folder)
        home, temporary = folder / "home", folder / "tmp"
        os.environ.update(HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"), TMPDIR=str(temporary), COLUMNS="200")
        tempfile.tempdir = str(temporary)  # without the file that Python writes to test the folder
        _limit(limits)
        if hook:
            sys.addaudithook(_Changes(str(folder), hook))
        code = _main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(arguments: list[str]) -> int:
    from mcpmq.__main__ import main

    sys.argv = ["mcpmq", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _redirect(log: Path) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT), number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _limit(limits: Limits) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory_nbytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.file_nbytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_nbytes,) * 2)


class _Changes:
    """Audit hook that numbers the changes of files in a folder."""

    def __init__(self, folder: str, hook: Hook) -> None:
        self.folder, self.hook, self.number = folder, hook, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES or (event == "open" and self._writes(*arguments)):
            self.number += 1
            self.hook(event, self.number)

    def _writes(self, path: object, mode: object, flags: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike) or not isinstance(flags, int):
            return False
        inside = os.path.abspath(os.fsdecode(path)).startswith(self.folder)  # noqa: PTH100
        return inside and bool(flags & WRITE_FLAGS)


def kill_at(number: int) -> Hook:
    """Return a hook that kills the process before one change."""

    def hook(_: str, current: int) -> None:
        if current == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def fail_at(number: int, code: int, *, forever: bool = True) -> Hook:
    """Return a hook that fails one change, or all changes from it on, with an `OSError`.

    Locks and removals do not fail: full disks allow both.
    """

    def hook(event: str, current: int) -> None:
        if event not in ("fcntl.flock", "os.remove", "os.rmdir") and (
            current == number or (forever and current > number)
        ):
            raise OSError(code, os.strerror(code))

    return hook


def count_into(file: Path) -> Hook:
    """Return a hook that keeps the number of changes in a file, opened beforehand."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)

    def hook(_: str, current: int) -> None:
        os.pwrite(descriptor, str(current).encode(), 0)

    return hook
