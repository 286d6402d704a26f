"""Verdicts as JUnit XML, SARIF, Markdown and HTML."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mcpmq.errors import OutputError
from mcpmq.gate import Verdict, VerdictFiles, junit_xml, sarif_json, summary_markdown
from tests.fake_reports import make_report

PASSED = Verdict("gguf a", "original", "image", "kl_divergence")
VIOLATED = Verdict("gguf a", "baseline", "text", "perplexity_ratio", 'is <2> & "more"')


def test_junit_has_a_case_for_every_bound() -> None:
    """A violated bound is a failure, and special characters are escaped."""
    suite = ElementTree.fromstring(junit_xml([PASSED, VIOLATED]))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("classname") for case in suite] == ["gguf a", "gguf a"]
    [failure] = suite.iter("failure")
    assert failure.get("message") == VIOLATED.problem


def test_sarif_has_a_result_for_every_violated_bound() -> None:
    """A result has the metric as rule, the text of the verdict, and the report as location."""
    log = json.loads(sarif_json([PASSED, VIOLATED], "out/report.json"))
    [run] = log["runs"]
    [result] = run["results"]
    assert log["version"] == "2.1.0"
    assert result["ruleId"] == run["tool"]["driver"]["rules"][0]["id"] == "perplexity_ratio"
    assert result["message"]["text"] == str(VIOLATED)
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "out/report.json"


def test_a_summary_begins_with_the_verdict() -> None:
    """The violated bounds are a list below the verdict."""
    assert summary_markdown([PASSED]) == "**Gate: passed.** 1 bound holds.\n"
    assert summary_markdown([PASSED, VIOLATED]).splitlines() == [
        "**Gate: failed.** 1 of 2 bounds violated:",
        "",
        f"- {VIOLATED}",
    ]


def test_only_given_files_are_written(tmp_path: Path) -> None:
    """The summary is appended to the existing text."""
    (tmp_path / "summary.md").write_text("before\n")
    files = VerdictFiles(junit=tmp_path / "junit.xml", html=tmp_path / "page.html", summary=tmp_path / "summary.md")
    files.write([PASSED], make_report(1), Path("report.json"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["junit.xml", "page.html", "summary.md"]
    assert "The gate passed" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "summary.md").read_text() == "before\n" + summary_markdown([PASSED])
    with pytest.raises(OutputError, match="nowhere"):
        VerdictFiles(sarif=tmp_path / "nowhere" / "x.sarif").write([PASSED], make_report(1), Path("report.json"))
