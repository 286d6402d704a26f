"""Calibrate on several GPUs of this machine: each has a process with a share of the samples.

    python -m mcpmq.calibrate.devices FOLDER

carries out the request in FOLDER; the first process, which rounds and writes the blocks, starts the others.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcpmq.calibrate.sequential import calibrate_sequentially
from mcpmq.dataset import Sample
from mcpmq.errors import DeviceError, McpmqError
from mcpmq.plan import Plan
from mcpmq.quantized_model import BlockWriter
from mcpmq.system.child_process import THREAD_VARIABLES, child_process
from mcpmq.system.process_group import GroupError, join_group
from mcpmq.system.progress import Progress, silent
from mcpmq.system.temporary_folder import temporary_folder

# Files of one process, which this user alone can read.
REQUEST_FILE, READY_FILE, ERROR_FILE, LOG_FILE = "request", "ready", "error", "log"
POLL_SECONDS, END_SECONDS = 0.05, 30.0  # a process that closed its connections ends within this time
CONNECTION_LOST = 71  # exit code of a process if another one ended
AGAIN_HINT = "run the same command again to resume"


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """The part of one process in a calibration on several devices; `blocks` are the names of the files."""

    plan: Plan
    samples: Sequence[Sample]
    blocks: tuple[str, ...]
    device: torch.device
    memory_limit: int | None
    rank: int
    size: int


@dataclass(frozen=True, slots=True)
class _Worker:
    """Another process of a calibration, and the folder with its files."""

    folder: Path
    device: torch.device
    process: "subprocess.Popen[Any]"

    def wait_until_ready(self) -> None:
        """Wait until the process has loaded its libraries and found its device.

        Raises:
            GroupError: it ended.
        """
        while not (self.folder / READY_FILE).is_file():
            if self.process.poll() is not None:
                raise GroupError("a process ended at its start")
            time.sleep(POLL_SECONDS)

    def failure(self) -> McpmqError | None:
        """Return the reason why the process ended; None if it works, or ended because another one did."""
        code = self.process.poll()
        if code in (None, 0, CONNECTION_LOST):
            return None
        if (self.folder / ERROR_FILE).is_file():
            error: McpmqError = pickle.loads((self.folder / ERROR_FILE).read_bytes())
            return error
        lines = (self.folder / LOG_FILE).read_text(errors="replace").splitlines()
        reason = signal.Signals(-code).name if code < 0 else (lines or [f"exit code {code}"])[-1]
        return DeviceError(f"the process of device `{self.device}` ended: {reason}", AGAIN_HINT)


def calibrate_on_devices(
    plan: Plan,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    progress: Progress,
    write: BlockWriter,
    memory_limit: int | None,
    devices: Sequence[torch.device],
) -> None:
    """Write the files of all blocks that need calibration; every device has some of the samples, the first one rounds.

    Sums of Hessians depend on the number of devices, so codes can differ from those of another number where two have
    nearly the same error.

    Raises:
        DeviceError: the process of a device ended.
        McpmqError: an error of `calibrate_sequentially`, in any process.
    """
    size, shared = len(devices), (plan, tuple(samples), tuple(files))
    with temporary_folder() as folder, ExitStack() as stack:
        workers = [
            stack.enter_context(_start(folder, DeviceRequest(*shared, devices[rank], memory_limit, rank, size)))
            for rank in range(1, size)
        ]
        try:
            for worker in workers:
                worker.wait_until_ready()
            with join_group(folder, 0, size, devices[0]) as group:
                calibrate_sequentially(plan, samples, files, progress, devices[0], write, memory_limit, group)
        except GroupError as error:
            raise _first_failure(workers) or _lost_connection(error) from error


def _first_failure(workers: Sequence[_Worker]) -> McpmqError | None:
    """Return the error of a process that others lost their connection to, as soon as it has ended."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        if found := next(filter(None, (worker.failure() for worker in workers)), None):
            return found
        time.sleep(POLL_SECONDS)
    return None


def _lost_connection(error: GroupError) -> DeviceError:
    return DeviceError(f"the processes of the devices lost their connection: {error}", AGAIN_HINT)


@contextmanager
def _start(folder: Path, request: DeviceRequest) -> Iterator[_Worker]:
    own = folder / str(request.rank)
    own.mkdir(mode=0o700)
    (own / REQUEST_FILE).write_bytes(pickle.dumps(request))
    threads = str(max(1, (os.cpu_count() or 1) // request.size))
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, threads)
    streams = {"stdin": subprocess.DEVNULL, "env": environment}
    with (
        (own / LOG_FILE).open("wb") as log,
        child_process("mcpmq.calibrate.devices", str(own), **streams, stdout=log, stderr=log) as process,
    ):
        yield _Worker(own, request.device, process)


def carry_out(folder: Path) -> None:
    """Pass the samples of a request through the model; an error goes to a file and ends the process."""
    request: DeviceRequest = pickle.loads((folder / REQUEST_FILE).read_bytes())
    files = {name: Path(f"{name}.safetensors") for name in request.blocks}
    torch.empty(1, device=request.device)
    (folder / READY_FILE).touch()
    with join_group(folder.parent, request.rank, request.size, request.device) as group:
        try:
            arguments = request.plan, request.samples, files, silent, request.device
            calibrate_sequentially(*arguments, memory_limit=request.memory_limit, exchange=group)
        except McpmqError as error:
            (folder / ERROR_FILE).write_bytes(pickle.dumps(error))
            os._exit(1)  # at once: process 0 waits for this one, and detects its end
        except GroupError:
            os._exit(CONNECTION_LOST)


if __name__ == "__main__":
    carry_out(Path(sys.argv[1]))
