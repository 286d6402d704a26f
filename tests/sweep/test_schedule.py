"""The order of steps, retries, and the pool of local processes with its memory limit."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mcpmq.errors import SweepError
from mcpmq.sweep import pool, process
from mcpmq.sweep.pool import Event, LocalPool
from mcpmq.sweep.request import LOG_FILE, SetRequest, StepRequest
from mcpmq.sweep.schedule import StepState, run_steps
from mcpmq.sweep.steps import Step

EVALUATION = SetRequest(path="set", samples=None, seed=0, sha256="00")
REQUEST = StepRequest(kind="cell", checkpoint="model", checkpoint_sha256="00", evaluation=EVALUATION)


def make_step(name: str, *requires: str, nbytes: int = 1, folder: Path = Path(), adaptive: bool = False) -> Step:
    """Return a step."""
    return Step(name, f"step {name}", REQUEST, folder / name, nbytes, requires, adaptive)


@dataclass
class FakePool:
    """Ends every step at once, with the next of its errors."""

    errors: dict[str, list[str]] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    ended: int = 0

    def check(self, step: Step) -> None:
        if step.memory_nbytes > 100:
            raise SweepError("too large", "a hint")

    def submit(self, step: Step) -> None:
        self.submitted.append(step.name)

    def wait(self, seconds: float) -> list[Event]:
        if self.ended == len(self.submitted):
            return []
        name = self.submitted[self.ended]
        self.ended, errors = self.ended + 1, self.errors.get(name, [])
        return [Event(name, ended=False), Event(name, ended=True, error=errors.pop(0) if errors else "")]


def test_steps_begin_after_those_they_require() -> None:
    """A step is submitted when all steps that it requires are finished, in any order of the list."""
    running = FakePool()
    states = run_steps([make_step("c", "a", "b"), make_step("b", "a"), make_step("a")], running, 0, lambda _: None)

    assert running.submitted == ["a", "b", "c"]
    assert {state.status for state in states.values()} == {"finished"}


def test_failed_steps_are_tried_again_and_end_the_steps_that_require_them() -> None:
    """After one error of two retries a step succeeds; after three errors it and those after it fail with the error."""
    flaky, broken = FakePool({"a": ["killed"]}), FakePool({"a": ["first", "second", "third"]})
    steps = [make_step("a"), make_step("b", "a")]

    assert run_steps(steps, flaky, 2, lambda _: None)["b"].status == "finished"
    states = run_steps(steps, broken, 2, lambda _: None)

    assert flaky.submitted == ["a", "a", "b"]
    assert (states["a"].status, states["a"].attempts, states["a"].error) == ("failed", 3, "third")
    assert (states["b"].status, states["b"].error) == ("failed", "step a: third")
    assert broken.submitted == ["a", "a", "a"]


def test_steps_that_cannot_run_fail_before_others_begin() -> None:
    """A step that is too large fails with the hint; the others run."""
    seen: list[dict[str, str]] = []
    show = lambda states: seen.append({name: state.status for name, state in states.items()})  # noqa: E731
    states = run_steps([make_step("a", nbytes=101), make_step("b")], FakePool(), 1, show)

    assert states["a"].error == "too large (a hint)"
    assert seen[0] == {"a": "failed", "b": "queued"}
    assert states["b"].status == "finished"


def test_a_failed_step_waits_between_attempts() -> None:
    """The error of the last attempt is shown while the next one waits."""
    state = StepState(make_step("a"))

    assert not state.is_over
    assert state.running_seconds == 0.0


@pytest.fixture
def short_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of steps sleep, and end with the exit code that is the number in the name of the step."""

    @contextmanager
    def sleeping(folder: Path, request: StepRequest) -> Iterator["subprocess.Popen[Any]"]:
        code = f"import time; time.sleep(0.15); raise SystemExit({folder.name[1:] or 0})"
        with subprocess.Popen([sys.executable, "-S", "-c", code]) as running:
            yield running

    monkeypatch.setattr(pool, "step_process", sleeping)
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.01)


def most_at_once(steps: list[Step], jobs: int, nbytes: int) -> int:
    """Run steps and return the largest number of processes at a time."""
    largest = 0
    with LocalPool.open(jobs, nbytes) as local:

        def show(states: object) -> None:
            nonlocal largest
            largest = max(largest, len(local.running))

        states = run_steps(steps, local, 0, show)
    assert all(state.status == "finished" for state in states.values())
    return largest


@pytest.mark.usefixtures("short_processes")
def test_steps_run_together_only_if_their_forecasts_fit() -> None:
    """Two steps of 5 GB do not run together in 8 GB, two of 4 GB do, and never more than the number of jobs."""
    assert most_at_once([make_step("a", nbytes=5 << 30), make_step("b", nbytes=5 << 30)], 2, 8 << 30) == 1
    assert most_at_once([make_step("a", nbytes=4 << 30), make_step("b", nbytes=4 << 30)], 2, 8 << 30) == 2
    assert most_at_once([make_step(name, nbytes=1) for name in "abc"], 2, 8 << 30) == 2


def test_a_step_that_is_larger_than_the_limit_is_rejected() -> None:
    """The error has both sizes; a process that adapts to the free memory runs alone instead."""
    with LocalPool.open(1, 8_000_000_000) as local:
        local.check(make_step("a", nbytes=9_000_000_000, adaptive=True))
        with pytest.raises(SweepError, match="step a needs about 9,000 MB of memory, the limit is 8,000 MB"):
            local.check(make_step("a", nbytes=9_000_000_000))


@pytest.mark.usefixtures("short_processes")
def test_processes_end_with_the_pool(tmp_path: Path) -> None:
    """The exit code becomes the error of the step; leaving the pool kills running processes."""
    with LocalPool.open(2, 10) as local:
        local.submit(make_step("a", folder=tmp_path))
        local.submit(make_step("b3", folder=tmp_path))
        events = [*local.wait(1)]
        while len(events) < 4:
            events += local.wait(1)
        local.submit(make_step("a", folder=tmp_path))
        local.wait(1)
        [(_, running, _)] = local.running.values()

    assert running.poll() is not None
    assert Event("a", ended=True) in events
    assert Event("b3", ended=True, error="the process ended with exit code 3: no output") in events


def test_the_reason_of_a_failure_is_from_the_log(tmp_path: Path) -> None:
    """The error and its hint are the last lines of the log; a killed process has no error but a signal."""
    log = tmp_path / LOG_FILE
    log.write_text("[1 of 2] quantizing: 3 of 28\nerror: the disk is full\n\nhint: free disk space\n")

    assert process.failure(tmp_path, 0) == ""
    assert process.failure(tmp_path, 1) == "the disk is full (free disk space)"
    assert process.failure(tmp_path, -9).startswith("the process was ended by SIGKILL; the system sends it if memory")
    log.write_text("[1 of 2] quantizing: 3 of 28\n")
    assert process.last_line(tmp_path) == "[1 of 2] quantizing: 3 of 28"
    assert process.failure(tmp_path, 2) == "the process ended with exit code 2: [1 of 2] quantizing: 3 of 28"


def test_the_process_of_a_step_writes_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command carries out the request in its folder with the threads of the request, and its output is the log."""
    monkeypatch.setattr(process, "child_process", _echo)
    with process.step_process(tmp_path / "a", REQUEST.model_copy(update={"threads": 3})) as running:
        assert running.wait() == 0

    assert process.last_line(tmp_path / "a") == f"mcpmq sweep-step {tmp_path / 'a'} 3"
    assert StepRequest.load(tmp_path / "a").threads == 3


@contextmanager
def _echo(*arguments: str, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    code = "import os, sys; print(*sys.argv[1:], os.environ['OMP_NUM_THREADS'])"
    with subprocess.Popen([sys.executable, "-S", "-c", code, *arguments], **options) as running:
        yield running
