"""Verdicts for other programs."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mcpmq.errors import OutputError
from mcpmq.gate import Verdict, VerdictFiles, junit, sarif, summary
from tests.fake_reports import invented_report

HELD = Verdict("gguf a", "original", "image", "kl_divergence")
VIOLATED = Verdict("gguf a", "baseline", "text", "perplexity_ratio", 'is <2> & "more"')


def test_junit_has_a_case_a_bound_and_a_failure_a_violated_one() -> None:
    """Read back by a parser, whatever the words hold."""
    suite = ElementTree.fromstring(junit([HELD, VIOLATED]))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("classname") for case in suite] == ["gguf a", "gguf a"]
    [failure] = suite.iter("failure")
    assert failure.get("message") == VIOLATED.problem


def test_sarif_has_a_result_a_violated_bound() -> None:
    """With the rule, the words, and the report as the place."""
    log = json.loads(sarif([HELD, VIOLATED], "out/report.json"))
    [run] = log["runs"]
    [result] = run["results"]
    assert log["version"] == "2.1.0"
    assert result["ruleId"] == run["tool"]["driver"]["rules"][0]["id"] == "perplexity_ratio"
    assert result["message"]["text"] == str(VIOLATED)
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "out/report.json"


def test_a_summary_begins_with_the_verdict() -> None:
    """And lists what was violated."""
    assert summary([HELD]) == "**Gate: passed.** 1 bound holds.\n"
    assert summary([HELD, VIOLATED]).splitlines() == [
        "**Gate: failed.** 1 of 2 bounds violated:",
        "",
        f"- {VIOLATED}",
    ]


def test_only_files_that_were_asked_for_are_written(tmp_path: Path) -> None:
    """The summary after what was there."""
    (tmp_path / "summary.md").write_text("before\n")
    files = VerdictFiles(junit=tmp_path / "junit.xml", html=tmp_path / "page.html", summary=tmp_path / "summary.md")
    files.write([HELD], invented_report(1), Path("report.json"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["junit.xml", "page.html", "summary.md"]
    assert "The gate passed" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "summary.md").read_text() == "before\n" + summary([HELD])
    with pytest.raises(OutputError, match="nowhere"):
        VerdictFiles(sarif=tmp_path / "nowhere" / "x.sarif").write([HELD], invented_report(1), Path("report.json"))
