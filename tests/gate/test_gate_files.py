"""Verdicts as JUnit XML, SARIF, Markdown and HTML."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mcpmq.errors import OutputError
from mcpmq.evaluate import Change, Difference, Estimate, VocabularyDifference
from mcpmq.gate import Bound, Verdict, VerdictFiles, junit_xml, sarif_json, summary_markdown
from mcpmq.gate.check import SIZES
from mcpmq.gate.files import METRIC_DESCRIPTIONS
from tests.fake_reports import make_report

VALUE = Estimate(value=0.005, standard_error=0.001, low=0.003, high=0.0071)
GATE = Path("release/gate.toml")
PASSED = Verdict("gguf a", "original", "image", "kl_divergence", "", "", Bound(at_most=0.01, on="high"), VALUE, GATE, 4)
VIOLATED = Verdict("gguf a", "baseline", "text", "perplexity_ratio", 'is <2> & "more"', gate=GATE, line=7)
SKIPPED = Verdict("gguf a", "baseline", "image", "nbytes_ratio", "", "no baseline", Bound(at_most=1.0), None, GATE, 9)
# Elements and attributes of the JUnit XSD of Jenkins, which GitLab and the actions of GitHub read.
JUNIT = {
    "testsuites": set(),
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
    "testcase": {"classname", "name", "time"},
    "failure": {"message", "type"},
    "skipped": set(),
    "system-out": set(),
}


def test_junit_has_a_case_for_every_bound() -> None:
    """A violated bound is a failure, a skipped one is skipped, and a checked one has value, limits and margin."""
    suites = ElementTree.fromstring(junit_xml([PASSED, VIOLATED, SKIPPED]))
    [suite] = suites
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["3", "1", "0", "1"]
    assert [case.get("classname") for case in suite] == ["gguf a"] * 3
    [failure] = suite.iter("failure")
    assert failure.get("message") == VIOLATED.problem
    [skipped] = suite.iter("skipped")
    assert skipped.text == "no baseline"
    output = suite[0].find("system-out")
    assert output is not None
    value, allowed = "0.005000 [0.003000, 0.007100]", "at most 0.01 (high end)"
    assert output.text == f"value [95 % interval]: {value}; allowed: {allowed}; margin: +0.002900"


def test_junit_has_known_elements_and_attributes_only() -> None:
    """Every element is in the schema with all of its required attributes."""
    for element in ElementTree.fromstring(junit_xml([PASSED, VIOLATED, SKIPPED])).iter():
        assert set(element.keys()) == JUNIT[element.tag]


def test_sarif_has_a_result_for_every_violated_bound() -> None:
    """A result has the metric as rule with a description, and the line of the gate as location."""
    log = json.loads(sarif_json([PASSED, VIOLATED, SKIPPED], Path("out/report.json")))
    [run] = log["runs"]
    [result], [rule] = run["results"], run["tool"]["driver"]["rules"]
    assert log["version"] == "2.1.0"
    assert result["ruleId"] == rule["id"] == "perplexity_ratio"
    assert result["ruleIndex"] == 0
    assert rule["shortDescription"]["text"] == "Perplexity of the answers, relative to the reference"
    assert result["message"]["text"] == str(VIOLATED)
    [place] = [location["physicalLocation"] for location in result["locations"]]
    assert place == {"artifactLocation": {"uri": "release/gate.toml"}, "region": {"startLine": 7}}
    assert result["relatedLocations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "out/report.json"


def test_every_metric_has_a_description() -> None:
    """All metrics of differences, changes, trimmed vocabularies and sizes are described."""
    trimmed = [name for name, field in VocabularyDifference.model_fields.items() if field.annotation is Estimate]
    for metric in (*Difference.model_fields, *Change.model_fields, *trimmed, *SIZES):
        assert METRIC_DESCRIPTIONS.get(metric.removesuffix("_ratio"), METRIC_DESCRIPTIONS.get(metric)), metric


def test_a_summary_begins_with_the_result() -> None:
    """The violated and skipped bounds are a table and a list below the result, the others are folded."""
    summary = summary_markdown([PASSED, VIOLATED, SKIPPED])
    lines = summary.splitlines()
    assert lines[0] == "### Gate failed: 1 of 3 bounds violated, 1 skipped"
    assert '- gguf a, text, perplexity_ratio against the baseline: is &lt;2&gt; &amp; "more"' in lines
    assert "| gguf a | baseline | image | nbytes_ratio |  | at most 1 |  | SKIPPED |" in lines
    assert summary.index("<details>") < summary.index("| kl_divergence |") < summary.index("</details>")
    assert "0.005000 \\[0.003000, 0.007100\\] | at most 0.01 (high end) | +0.002900 | passed |" in summary
    assert summary_markdown([PASSED]).startswith("### Gate passed: 1 of 1 bound holds\n")


def test_names_in_verdicts_are_escaped() -> None:
    """Control characters, HTML and links of names have no effect in any file."""
    verdict = Verdict("gguf \x1b[31m[a](https://b.example)<img>", "original", "image", "kl\x00", "is \u202e2")
    suite = ElementTree.fromstring(junit_xml([verdict]))
    assert suite[0][0].get("classname") == "gguf \\u001b[31m[a](https://b.example)<img>"
    [result] = json.loads(sarif_json([verdict], Path("report.json")))["runs"][0]["results"]
    assert result["ruleId"] == "kl\\u0000"
    assert "[a] (https" in result["message"]["text"]
    assert "\\[a\\](https&#58;//b.example)&lt;img&gt;, image, kl" in summary_markdown([verdict])


def test_sarif_paths_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location in the working directory is relative to it and quoted; of another one only the name is written."""
    monkeypatch.chdir(tmp_path)
    for path, expected in ((tmp_path / "a b" / "gate.toml", "a%20b/gate.toml"), (Path("/else/x.toml"), "x.toml")):
        [result] = json.loads(sarif_json([replace(VIOLATED, gate=path)], Path("report.json")))["runs"][0]["results"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == expected


def test_only_given_files_are_written(tmp_path: Path) -> None:
    """The summary is appended to the existing text."""
    (tmp_path / "summary.md").write_text("before\n")
    files = VerdictFiles(junit=tmp_path / "junit.xml", html=tmp_path / "page.html", summary=tmp_path / "summary.md")
    files.write([PASSED], make_report(1), Path("report.json"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["junit.xml", "page.html", "summary.md"]
    assert "Gate passed: 1 of 1 bound holds" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "summary.md").read_text() == "before\n" + summary_markdown([PASSED])
    with pytest.raises(OutputError, match="nowhere"):
        VerdictFiles(sarif=tmp_path / "nowhere" / "x.sarif").write([PASSED], make_report(1), Path("report.json"))


def test_files_are_replaced_when_they_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write keeps the old file and leaves no partial one."""
    (tmp_path / "junit.xml").write_text("old")

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        VerdictFiles(junit=tmp_path / "junit.xml").write([PASSED], make_report(1), Path("report.json"))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("junit.xml", "old")]
