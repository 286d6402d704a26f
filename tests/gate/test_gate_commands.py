"""The commands `check` and `report`."""

import json
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
    """One line is on stdout."""
    ran = mcpmq("check", released, "--gate", gate_of(tmp_path, 1))

    assert (ran.exit_code, ran.stdout) == (0, "all 2 bounds hold\n")


def test_a_violated_gate_exits_with_three(mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """Every violated bound is a line on stdout, and all files are written."""
    files = [tmp_path / name for name in ("junit.xml", "log.sarif", "page.html", "summary.md")]
    options = ("--junit", files[0], "--sarif", files[1], "--html", files[2], "--summary", files[3])
    ran = mcpmq("check", released, "--gate", gate_of(tmp_path, 0), *options)

    assert ran.exit_code == 3
    assert [line.partition(",")[0] for line in ran.stdout.splitlines()] == ["gguf phone-int4", "onnx phone-int4"]
    assert all(file.is_file() for file in files)
    verdicts = json.loads(mcpmq("check", released, "--gate", tmp_path / "gate.toml", "--json").stdout)
    assert [verdict["metric"] for verdict in verdicts] == ["kl_divergence", "kl_divergence"]


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
