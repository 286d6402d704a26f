"""Run the steps of a sweep in the order of their requirements; failed steps are tried again."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mcpmq.errors import SweepError
from mcpmq.sweep.pool import Event, Pool
from mcpmq.sweep.steps import Step

Status = Literal["waiting", "queued", "running", "finished", "failed"]
SHOW_SECONDS = 0.5  # between two calls of `show`


@dataclass(slots=True)
class StepState:
    """The state of one step; `attempts` are those of this run, `seconds` those of the last one."""

    step: Step
    status: Status = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""
    begin: float = 0.0  # of the running attempt, on the monotonic clock

    @property
    def is_over(self) -> bool:
        return self.status in ("finished", "failed")

    @property
    def running_seconds(self) -> float:
        """Seconds of the running attempt, or of the last one."""
        return time.monotonic() - self.begin if self.status == "running" else self.seconds


Show = Callable[[Mapping[str, StepState]], None]


def run_steps(steps: Sequence[Step], pool: Pool, retries: int, show: Show) -> dict[str, StepState]:
    """Run all steps, each after those that it requires, and return their states by name.

    A step that fails is run again up to `retries` times. The steps that require a failed one fail with its error.
    `show` is called when a state changes, and twice a second.
    """
    states = {step.name: StepState(step) for step in steps}
    for state in states.values():
        _check(state, pool)
    while not all(state.is_over for state in states.values()):
        for state in states.values():
            _submit_if_ready(state, states, pool)
        show(states)
        for event in pool.wait(SHOW_SECONDS):
            _update(states[event.step], event, retries)
    show(states)
    return states


def _check(state: StepState, pool: Pool) -> None:
    try:
        pool.check(state.step)
    except SweepError as error:
        state.status, state.error = "failed", f"{error} ({error.hint})"


def _submit_if_ready(state: StepState, states: Mapping[str, StepState], pool: Pool) -> None:
    if state.status != "waiting":
        return
    required = [states[name] for name in state.step.requires]
    if failed := next((one for one in required if one.status == "failed"), None):
        state.status, state.error = "failed", f"{failed.step.label}: {failed.error}"
    elif all(one.status == "finished" for one in required) and all(states[one].is_over for one in state.step.after):
        state.status = "queued"
        pool.submit(state.step)


def _update(state: StepState, event: Event, retries: int) -> None:
    if not event.ended:
        state.status, state.begin, state.attempts = "running", time.monotonic(), state.attempts + 1
        return
    state.seconds, state.error = time.monotonic() - state.begin, event.error
    if not event.error:
        state.status = "finished"
    else:
        state.status = "waiting" if state.attempts <= retries else "failed"
