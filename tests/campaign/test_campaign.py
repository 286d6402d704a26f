"""A short seeded campaign, and the outcomes that it accepts."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign import interruptions, mutations
from tests.campaign.isolation import Outcome
from tests.campaign.workspace import snapshot

ROOT = Path(__file__).parent.parent.parent


def test_a_short_campaign_has_no_problem(tmp_path: Path) -> None:
    """Two dozen fuzzed inputs, and kills and faults of the fast commands, end as documented.

    The campaign runs in a process of its own, which forks before any thread starts.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.campaign.short", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)

    assert result.stdout == ""
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(0, "", "", 1.0), ""),
        (Outcome(3, "", "", 1.0), ""),
        (Outcome(1, "", "error: wrong\n\nhint: correct it", 1.0), ""),
        (Outcome(1, "", "error: wrong", 1.0), "no hint: error: wrong"),
        (Outcome(70, "", "Traceback (most recent call last):\nKeyError: 'a'", 1.0), "traceback: KeyError: 'a'"),
        (Outcome(1, "", "error: out of memory\n\nhint: less", 1.0), "memory limit exceeded"),
        (Outcome(-signal.SIGSEGV, "", "", 1.0), "ended by SIGSEGV"),
        (Outcome(-signal.SIGKILL, "", "", 60.0, timed_out=True), "no end after 60 s"),
    ],
)
def test_outcomes_without_an_error_message_are_problems(outcome: Outcome, problem: str) -> None:
    """Success, a failed gate, and an error with its hint are accepted."""
    assert outcome.problem == problem


def test_differences_between_folders_are_found(tmp_path: Path) -> None:
    """Additional, missing and changed files are named; measured times in report.json are ignored."""
    (tmp_path / "report.json").write_text('{"machine_dependent": 1, "loss": 2}')
    before = snapshot(tmp_path)
    (tmp_path / "report.json").write_text('{"machine_dependent": 3, "loss": 2}')
    assert interruptions.difference_of(before, snapshot(tmp_path)) == ""

    (tmp_path / "report.json").write_text('{"machine_dependent": 3, "loss": 4}')
    assert interruptions.difference_of(before, snapshot(tmp_path)) == "`report.json` has other bytes"
    (tmp_path / ".partial").mkdir()
    assert interruptions.difference_of(before, snapshot(tmp_path)) == "`.partial` is left behind"
    assert interruptions.difference_of(snapshot(tmp_path), before) == "`.partial` is missing"


def test_mutations_are_equal_for_equal_seeds() -> None:
    """A case can be repeated."""
    content = b'{"a": [1, 2, {"b": "text"}]}'
    first, second = ([mutations.mutate_json(content, random.Random(seed)) for seed in range(2000)] for _ in range(2))

    assert first == second
    assert len(set(first)) > 20
