"""Showing reports and holding them against a gate, as a person types it."""

import json
from pathlib import Path

import pytest

from mcpmq.report import write_report
from tests.commands import Command
from tests.fake_reports import invented_report


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The folder of a report about nothing."""
    write_report(invented_report(2), tmp_path / "released")
    return tmp_path / "released"


def gate_of(tmp_path: Path, at_most: float) -> Path:
    """A gate with one bound."""
    (tmp_path / "gate.toml").write_text(f"[original.image]\nkl_divergence = {{ at_most = {at_most} }}\n")
    return tmp_path / "gate.toml"


def test_a_gate_that_holds_exits_with_nothing_to_say_but_that(mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """Zero; one line on stdout."""
    ran = mcpmq("check", released, "--gate", gate_of(tmp_path, 1))

    assert (ran.code, ran.out) == (0, "all 2 bounds hold\n")


def test_a_violated_gate_exits_with_three_and_a_line_a_bound(mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """And writes what was asked for beside."""
    files = [tmp_path / name for name in ("junit.xml", "log.sarif", "page.html", "summary.md")]
    options = ("--junit", files[0], "--sarif", files[1], "--html", files[2], "--summary", files[3])
    ran = mcpmq("check", released, "--gate", gate_of(tmp_path, 0), *options)

    assert ran.code == 3
    assert [line.partition(",")[0] for line in ran.out.splitlines()] == ["gguf phone-int4", "onnx phone-int4"]
    assert all(file.is_file() for file in files)
    verdicts = json.loads(mcpmq("check", released, "--gate", tmp_path / "gate.toml", "--json").out)
    assert [one["metric"] for one in verdicts] == ["kl_divergence", "kl_divergence"]


@pytest.mark.parametrize("damage", ["gate", "report", "baseline", "artifact"])
def test_what_cannot_be_read_is_an_error_and_no_verdict(
    damage: str, mcpmq: Command, released: Path, tmp_path: Path
) -> None:
    """A broken gate, a truncated report, no baseline, an artifact that was not measured: one, with a hint."""
    gate, options = gate_of(tmp_path, 1), []
    if damage == "gate":
        gate.write_text("[original")
    if damage == "report":
        content = (released / "report.json").read_bytes()
        (released / "report.json").write_bytes(content[: len(content) // 2])
    if damage in ("baseline", "artifact"):
        options = [f"--{damage}", tmp_path / "none"]
    ran = mcpmq("check", released, "--gate", gate, *options)

    assert ran.code == 1
    assert ran.out == ""
    assert "hint: " in ran.err


def test_two_reports_tell_what_changed(mcpmq: Command, released: Path, tmp_path: Path) -> None:
    """Beneath the table of both; as Markdown, and not in JSON, which holds all figures of both."""
    write_report(invented_report(1), tmp_path / "later")
    ran = mcpmq("report", released, tmp_path / "later", "--markdown")

    assert "## What changed from the first to the second" in ran.out
    assert "image perplexity, % | +0.00 ±0.00" in ran.out
    assert len(json.loads(mcpmq("report", released, tmp_path / "later", "--json").out)["artifacts"]) == 3
    assert mcpmq("report", released, "--html").out.startswith("<!doctype html>")
