"""The example workflow: pinned actions, and commands with options that mcpmq has."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mcpmq.cli import app

WORKFLOW = Path(__file__).parent.parent / "examples" / "release.yml"


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    """The steps of the only job."""
    [job] = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def test_actions_are_pinned_by_hash(steps: list[dict[str, Any]]) -> None:
    """Every action is named by a full commit hash, because tags can be moved."""
    used = [step["uses"] for step in steps if "uses" in step]
    assert len(used) == 3
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one) for one in used)


def test_every_command_exists_with_all_its_options(steps: list[dict[str, Any]]) -> None:
    """The workflow runs convert, check and report, in this order, with existing options."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [shlex.split(step["run"]) for step in steps if step.get("run", "").startswith("mcpmq ")]
    assert [line[1] for line in lines] == ["convert", "check", "report"]
    for _, verb, *words in lines:
        known = {option for parameter in commands[verb].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
