"""Write verdicts as JUnit XML, SARIF, Markdown, or HTML."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mcpmq.errors import OutputError
from mcpmq.gate.check import Verdict
from mcpmq.report import Report, render_html

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, slots=True)
class VerdictFiles:
    """Files to write verdicts to, or None."""

    junit: Path | None = None
    sarif: Path | None = None
    html: Path | None = None
    summary: Path | None = None  # appended to, as required for $GITHUB_STEP_SUMMARY

    def write(self, verdicts: Sequence[Verdict], report: Report, source: Path) -> None:
        """Write all given files; `source` is the path of the report.

        Raises:
            OutputError: a file cannot be written.
        """
        try:
            if self.junit:
                self.junit.write_text(junit_xml(verdicts), encoding="utf-8")
            if self.sarif:
                self.sarif.write_text(sarif_json(verdicts, source.as_posix()), encoding="utf-8")
            if self.html:
                violated = [str(verdict) for verdict in verdicts if not verdict.passed]
                self.html.write_text(render_html(report, violated), encoding="utf-8")
            if self.summary:
                with self.summary.open("a", encoding="utf-8") as stream:
                    stream.write(summary_markdown(verdicts))
        except OSError as error:
            raise OutputError(f"`{error.filename}` cannot be written: {error.strerror}", "give another file") from error


def junit_xml(verdicts: Sequence[Verdict]) -> str:
    """Return JUnit XML with a test case for every bound, and the artifact as its class name."""
    failures = sum(not verdict.passed for verdict in verdicts)
    suite = ElementTree.Element("testsuite", name="mcpmq check", tests=str(len(verdicts)), failures=str(failures))
    for verdict in verdicts:
        name = f"{verdict.group} {verdict.metric} against the {verdict.reference}"
        case = ElementTree.SubElement(suite, "testcase", classname=verdict.artifact, name=name)
        if not verdict.passed:
            ElementTree.SubElement(case, "failure", message=verdict.problem).text = str(verdict)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def sarif_json(verdicts: Sequence[Verdict], report: str) -> str:
    """Return SARIF 2.1.0 (OASIS) with a result for every violated bound, located in the report file."""
    violated = [verdict for verdict in verdicts if not verdict.passed]
    location = {"physicalLocation": {"artifactLocation": {"uri": report}, "region": {"startLine": 1}}}
    results = [
        {"ruleId": verdict.metric, "level": "error", "message": {"text": str(verdict)}, "locations": [location]}
        for verdict in violated
    ]
    rules = [{"id": metric} for metric in dict.fromkeys(verdict.metric for verdict in violated)]
    run = {"tool": {"driver": {"name": "mcpmq", "rules": rules}}, "results": results}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def summary_markdown(verdicts: Sequence[Verdict]) -> str:
    """Return the verdict and the violated bounds as Markdown."""
    violated = [verdict for verdict in verdicts if not verdict.passed]
    count = f"{len(verdicts)} bound{'s' * (len(verdicts) != 1)}"
    if not violated:
        return f"**Gate: passed.** {count} hold{'s' * (len(verdicts) == 1)}.\n"
    return (
        "\n".join([f"**Gate: failed.** {len(violated)} of {count} violated:", "", *(f"- {one}" for one in violated)])
        + "\n"
    )
