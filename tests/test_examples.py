"""The examples: the workflow for GitHub has pinned actions and existing options; the script runs."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mcpmq.cli import app
from mcpmq.dataset import SampleSet

EXAMPLES = Path(__file__).parent.parent / "examples"
WORKFLOW = EXAMPLES / "release.yml"


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


def test_the_python_workflow_runs(
    small_checkpoint: Path, tiny_set: Path, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """examples/workflow.py quantizes with three recipes, and writes a report and a plot with a point for each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"

    report = runpy.run_path(str(EXAMPLES / "workflow.py"))["main"](small_checkpoint, tiny_set, mixed_set.path, out)

    assert [one.recipe for one in report.artifacts] == ["phone-int4", "calibrated-int4", "phone-int8"]
    assert (out / "report.html").is_file()
    assert (out / "plot.svg").read_text().count("<circle") == 3
