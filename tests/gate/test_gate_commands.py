"""The commands `check` and `report`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.report import write_report
from tests.commands import Command
from tests.fake_reports import make_report


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Return the folder of a report of random numbers."""
    write_report(make_report(2), tmp_path / "released")
    return tmp_path / "released"


def gate_of(tmp_path: Path, at_most: float) -> Path:
    """Return a gate with one bound."""
    (tmp_path / "gate.toml").write_text(f"[original.image]\nkl_divergence = {{ at_most = {at_most} }}\n")
    return tmp_path / "gate.toml"


def test_a_passed_gate_exits_with_zero(mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """Every bound is printed with value, interval, limits and margin."""
    ran = mcpmq("check", released, "--gate", gate_of(tmp_path, 1))

    assert ran.exit_code == 0
    assert ran.stdout.startswith("Gate passed: 2 of 2 bounds hold\n")
    rows = [line for line in ran.stdout.splitlines() if line.startswith("   image kl_divergence")]
    assert len(rows) == 2
    assert all(re.search(r"0\.\d+ \[0\.\d+, 0\.\d+\]  at most 1  \+0\.\d+  passed$", row) for row in rows)


def test_a_violated_gate_exits_with_three(mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """Every violated bound is a line on stdout, and all files are written."""
    files = [tmp_path / name for name in ("junit.xml", "log.sarif", "page.html", "summary.md")]
    options = ("--junit", files[0], "--sarif", files[1], "--html", files[2], "--summary", files[3])
    ran = mcpmq("check", released, "--gate", gate_of(tmp_path, 0), *options)

    assert ran.exit_code == 3
    assert [line.partition(",")[0] for line in ran.stdout.splitlines()[-2:]] == ["gguf phone-int4", "onnx phone-int4"]
    assert ran.stdout.startswith("Gate failed: 2 of 2 bounds violated\n")
    assert all(file.is_file() for file in files)
    result = json.loads(mcpmq("check", released, "--gate", tmp_path / "gate.toml", "--json").stdout)
    assert result["passed"] is False
    [first, _] = result["bounds"]
    assert (first["metric"], first["status"], first["line"]) == ("kl_divergence", "failed", 2)
    assert first["low"] < first["value"] < first["high"]
    assert first["margin"] == -first["value"] == -first["checked_value"]
    assert first["bound"] == {"at_most": 0.0, "at_least": None, "on": "value"}
    assert first["gate"] == str(tmp_path / "gate.toml")


@pytest.mark.parametrize("output", ["", "--json"])
@pytest.mark.parametrize(("at_most", "code"), [(1, 0), (0, 3)])
def test_a_closed_pipe_does_not_change_the_verdict(
    output: str, at_most: float, code: int, released: Path, tmp_path: Path
) -> None:
    """The exit code is that of the gate, also if the reader of the result has ended."""
    gate = gate_of(tmp_path, at_most)
    command = [sys.executable, "-m", "mcpmq", "check", str(released), "--gate", str(gate)]
    reader, writer = os.pipe()
    os.close(reader)

    ran = subprocess.run([*command, *output.split()], stdout=writer, stderr=subprocess.PIPE, check=False)

    os.close(writer)
    assert (ran.returncode, ran.stderr) == (code, b"")


def test_bounds_of_a_baseline_that_cannot_be_compared_are_skipped(
    mcpmq: Command, released: Path, tmp_path: Path
) -> None:
    """The reason is a violation, the bounds are listed as skipped, and the bounds on the original are checked."""
    gate = gate_of(tmp_path, 1)
    gate.write_text(gate.read_text() + "[baseline.text]\nperplexity_ratio = { at_most = 1.01 }\n")
    ran = mcpmq("check", released, "--gate", gate)

    assert ran.exit_code == 3
    assert "Gate failed: 2 of 6 bounds violated, 2 skipped" in ran.stdout
    assert ran.stdout.count("SKIPPED") == 2
    assert "perplexity_ratio against the baseline: skipped: the baseline cannot be compared: report" in ran.stdout


@pytest.mark.parametrize("invalid", ["gate", "report", "baseline", "artifact"])
def test_an_unreadable_file_is_an_error(invalid: str, mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """An invalid gate, a truncated report, a missing baseline or artifact: exit code 1 and a hint."""
    gate, options = gate_of(tmp_path, 1), []
    if invalid == "gate":
        gate.write_text("[original")
    if invalid == "report":
        content = (released / "report.json").read_bytes()
        (released / "report.json").write_bytes(content[: len(content) // 2])
    if invalid in ("baseline", "artifact"):
        options = [f"--{invalid}", tmp_path / "none"]
    ran = mcpmq("check", released, "--gate", gate, *options)

    assert ran.exit_code == 1
    assert ran.stdout == ""
    assert "hint: " in ran.stderr


def test_two_reports_are_compared(mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """The changes are below the table of both reports; JSON has the measurements only."""
    write_report(make_report(1), tmp_path / "later")
    ran = mcpmq("report", released, tmp_path / "later", "--markdown")

    assert "## Change from the first to the second report" in ran.stdout
    assert "perplexity, images, % | +0.00 ±0.00" in ran.stdout
    assert len(json.loads(mcpmq("report", released, tmp_path / "later", "--json").stdout)["artifacts"]) == 3
    assert mcpmq("report", released, "--html").stdout.startswith("<!doctype html>")
