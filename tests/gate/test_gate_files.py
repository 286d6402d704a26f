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
    log = json.loads(sarif_json([PASSED, VIOLATED], Path("out/report.json")))
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
        '- gguf a, text, perplexity_ratio against the baseline: is &lt;2&gt; &amp; "more"',
    ]


def test_names_in_verdicts_are_escaped() -> None:
    """Control characters, HTML and links of names have no effect in any file."""
    verdict = Verdict("gguf \x1b[31m[a](https://b.example)<img>", "original", "image", "kl\x00", "is \u202e2")
    suite = ElementTree.fromstring(junit_xml([verdict]))
    assert suite[0].get("classname") == "gguf \\u001b[31m[a](https://b.example)<img>"
    [result] = json.loads(sarif_json([verdict], Path("report.json")))["runs"][0]["results"]
    assert result["ruleId"] == "kl\\u0000"
    assert "[a] (https" in result["message"]["text"]
    assert "\\[a\\](https&#58;//b.example)&lt;img&gt;, image, kl" in summary_markdown([verdict])


def test_sarif_paths_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location in the working directory is relative to it and quoted; of another one only the name is written."""
    monkeypatch.chdir(tmp_path)
    for path, expected in ((tmp_path / "a b" / "report.json", "a%20b/report.json"), (Path("/else/x.json"), "x.json")):
        [result] = json.loads(sarif_json([VIOLATED], path))["runs"][0]["results"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == expected


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
