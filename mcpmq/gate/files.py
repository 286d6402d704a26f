"""Write verdicts as JUnit XML, SARIF, Markdown, or HTML."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from mcpmq.errors import OutputError
from mcpmq.gate.check import Verdict
from mcpmq.report import Report, render_html
from mcpmq.report.report import JSON_FILE
from mcpmq.system.escaping import escape_controls, escape_markdown

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
                self.sarif.write_text(
                    sarif_json(verdicts, source / JSON_FILE if source.is_dir() else source), encoding="utf-8"
                )
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
        name = escape_controls(f"{verdict.group} {verdict.metric} against the {verdict.reference}")
        case = ElementTree.SubElement(suite, "testcase", classname=escape_controls(verdict.artifact), name=name)
        if not verdict.passed:
            failure = ElementTree.SubElement(case, "failure", message=escape_controls(verdict.problem))
            failure.text = escape_controls(str(verdict))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def sarif_json(verdicts: Sequence[Verdict], report: Path) -> str:
    """Return SARIF 2.1.0 (OASIS) with a result for every violated bound, located in the report file.

    The location is relative to the working directory; of a file outside of it only the name is written.
    """
    violated = [verdict for verdict in verdicts if not verdict.passed]
    location = {"physicalLocation": {"artifactLocation": {"uri": _relative_uri(report)}, "region": {"startLine": 1}}}
    results = [
        {
            "ruleId": escape_controls(verdict.metric),
            "level": "error",
            "message": {"text": _sarif_text(str(verdict))},
            "locations": [location],
        }
        for verdict in violated
    ]
    rules = [{"id": escape_controls(metric)} for metric in dict.fromkeys(verdict.metric for verdict in violated)]
    run = {"tool": {"driver": {"name": "mcpmq", "rules": rules}}, "results": results}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _relative_uri(file: Path) -> str:
    absolute, root = Path(os.path.abspath(file)), Path.cwd()  # noqa: PTH100 - links stay
    relative = absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.name
    return quote(os.fsencode(relative))


def _sarif_text(text: str) -> str:
    """Return plain text; `](` would make a link of the text before it (SARIF 2.1.0, 3.11.6)."""
    return escape_controls(text).replace("](", "] (")


def summary_markdown(verdicts: Sequence[Verdict]) -> str:
    """Return the verdict and the violated bounds as Markdown."""
    violated = [verdict for verdict in verdicts if not verdict.passed]
    count = f"{len(verdicts)} bound{'s' * (len(verdicts) != 1)}"
    if not violated:
        return f"**Gate: passed.** {count} hold{'s' * (len(verdicts) == 1)}.\n"
    lines = [f"- {escape_markdown(str(verdict))}" for verdict in violated]
    return "\n".join([f"**Gate: failed.** {len(violated)} of {count} violated:", "", *lines]) + "\n"
