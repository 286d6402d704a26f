"""The engine in a child process: started, and started again after it has ended."""

import json
import os
import secrets
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import IO, Any

from mcpmq.errors import EngineError
from mcpmq.system.child_process import child_process
from mcpmq.system.temporary_folder import temporary_folder

READY = "mcpmq: engine ready "  # begin of the line of stdout that the child writes
MAX_SOCKET_PATH = 107  # bytes of the path of a Unix socket, without the final null
MAX_STDERR_LINES = 20
MIN_RUN_SECONDS = 10.0  # of a process that is replaced at once; after shorter runs the delay doubles
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 0.1, 30.0
LOAD_HINT = "close other programs or reduce --context and --slots; `mcpmq inspect` checks the artifact"


class EngineProcess:
    """A child process that serves chat completions on a Unix socket in a private folder.

    `module` reads its settings as a line of JSON from stdin, with `socket` and `key`. When it has loaded its model, it
    writes `READY` and facts about it in JSON to stdout. It ends with this process.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], folder: Path) -> None:
        self._module, self._settings, self._folder = module, settings, folder
        self._loaded_or_failed, self._stopped = Event(), Event()
        self._process: subprocess.Popen[str] | None = None
        self._stderr: deque[str] = deque(maxlen=MAX_STDERR_LINES)
        self._thread = Thread(target=self._supervise, daemon=True, name="engine")
        self.key = secrets.token_hex(32)
        self.socket: Path | None = None  # None: the engine is not ready
        self.facts: dict[str, Any] = {}
        self.starts = 0

    def start(self) -> None:
        """Start the engine and wait until it has loaded its model.

        Raises:
            EngineError: the engine ended before.
        """
        if len(bytes(self._socket_path(0))) > MAX_SOCKET_PATH:
            raise EngineError(f"the path `{self._folder}` is too long for a socket", "set TMPDIR to a shorter path")
        self._thread.start()
        self._loaded_or_failed.wait()
        if self.socket is None:
            raise EngineError("\n".join(["the engine could not load the model", *self._stderr]), LOAD_HINT)

    def restart(self) -> None:
        """End the process; another one is started."""
        self.socket = None
        if self._process:
            self._process.kill()

    def stop(self) -> None:
        """End the process, and wait until it has ended."""
        self._stopped.set()
        self.restart()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _supervise(self) -> None:
        delay = FIRST_DELAY_SECONDS
        for number in count():
            begin = time.monotonic()
            was_ready = self._run(self._socket_path(number))
            self._loaded_or_failed.set()
            if self._stopped.is_set() or (number == 0 and not was_ready):
                return
            lasting = time.monotonic() - begin >= MIN_RUN_SECONDS
            delay = FIRST_DELAY_SECONDS if lasting else min(2 * delay, MAX_DELAY_SECONDS)
            self._stopped.wait(0 if lasting else delay)

    def _run(self, socket: Path) -> bool:
        """Run a process until it ends; return whether it was ready."""
        was_ready = False
        try:
            with _started(self._module) as process:
                self._process = process
                Thread(target=self._keep_stderr, args=(process.stderr,), daemon=True).start()
                was_ready = not self._stopped.is_set() and self._become_ready(process, socket)
                for _ in process.stdout or ():  # a full pipe would block the process
                    pass
                process.wait()
        except OSError as error:  # the system starts no process, e.g. because of its limit of processes
            self._stderr.append(f"no process can be started: {error}")
        self.socket = None
        return was_ready

    def _become_ready(self, process: "subprocess.Popen[str]", socket: Path) -> bool:
        """Send the settings and wait for the line that the process writes when it is ready."""
        assert process.stdin
        assert process.stdout
        with suppress(OSError, ValueError):  # the process has ended
            settings = {**self._settings, "socket": str(socket), "key": self.key}
            process.stdin.write(json.dumps(settings) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith(READY):
                    self.facts = json.loads(line.removeprefix(READY))
                    self.starts += 1
                    self.socket = socket
                    self._loaded_or_failed.set()
                    return True
        return False

    def _keep_stderr(self, stderr: IO[str]) -> None:
        with suppress(OSError, ValueError):  # closed by the other thread
            self._stderr.extend(line.rstrip() for line in stderr if line.strip())

    def _socket_path(self, number: int) -> Path:
        return self._folder / f"{number}.sock"


@contextmanager
def _started(module: str) -> "Iterator[subprocess.Popen[str]]":
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with child_process(module, env=environment, text=True, errors="replace", **streams) as process:
        yield process


@contextmanager
def running_engine(module: str, settings: Mapping[str, Any]) -> Iterator[EngineProcess]:
    """Run an engine in a child process with a private folder until the end of the block.

    Raises:
        EngineError: the engine could not load the model.
    """
    with temporary_folder() as folder:
        engine = EngineProcess(module, settings, folder)
        try:
            engine.start()
            yield engine
        finally:
            engine.stop()
