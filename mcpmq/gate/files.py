"""Verdicts for other programs and people: JUnit XML, SARIF, the Markdown of a step summary, the page of the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mcpmq.errors import OutputError
from mcpmq.gate.check import Verdict
from mcpmq.report import Report, page_of

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


@dataclass(frozen=True, slots=True)
class VerdictFiles:
    """Where verdicts go beside the terminal; None where nobody asked."""

    junit: Path | None = None
    sarif: Path | None = None
    html: Path | None = None
    summary: Path | None = None  # appended to, as $GITHUB_STEP_SUMMARY wants it

    def write(self, verdicts: Sequence[Verdict], report: Report, source: Path) -> None:
        """Write the files that were asked for; `source` is where the report was read.

        Raises:
            OutputError: one cannot be written.
        """
        try:
            if self.junit:
                self.junit.write_text(junit(verdicts), encoding="utf-8")
            if self.sarif:
                self.sarif.write_text(sarif(verdicts, source.as_posix()), encoding="utf-8")
            if self.html:
                violated = [str(verdict) for verdict in verdicts if not verdict.holds]
                self.html.write_text(page_of(report, violated), encoding="utf-8")
            if self.summary:
                with self.summary.open("a", encoding="utf-8") as stream:
                    stream.write(summary(verdicts))
        except OSError as error:
            raise OutputError(f"`{error.filename}` cannot be written: {error.strerror}", "name another file") from error


def junit(verdicts: Sequence[Verdict]) -> str:
    """A test case a bound, under the name of its artifact; as the JUnit readers of CI services take it."""
    failures = sum(not verdict.holds for verdict in verdicts)
    suite = ElementTree.Element("testsuite", name="mcpmq check", tests=str(len(verdicts)), failures=str(failures))
    for verdict in verdicts:
        name = f"{verdict.kind} {verdict.metric} against the {verdict.against}"
        case = ElementTree.SubElement(suite, "testcase", classname=verdict.artifact, name=name)
        if not verdict.holds:
            ElementTree.SubElement(case, "failure", message=verdict.problem).text = str(verdict)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def sarif(verdicts: Sequence[Verdict], report: str) -> str:
    """A result a violated bound, located in the report file; SARIF 2.1.0 (OASIS)."""
    violated = [verdict for verdict in verdicts if not verdict.holds]
    location = {"physicalLocation": {"artifactLocation": {"uri": report}, "region": {"startLine": 1}}}
    results = [
        {"ruleId": verdict.metric, "level": "error", "message": {"text": str(verdict)}, "locations": [location]}
        for verdict in violated
    ]
    rules = [{"id": metric} for metric in dict.fromkeys(verdict.metric for verdict in violated)]
    run = {"tool": {"driver": {"name": "mcpmq", "rules": rules}}, "results": results}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def summary(verdicts: Sequence[Verdict]) -> str:
    """Markdown: the verdict first, then what was violated."""
    violated = [verdict for verdict in verdicts if not verdict.holds]
    count = f"{len(verdicts)} bound{'s' * (len(verdicts) != 1)}"
    if not violated:
        return f"**Gate: passed.** {count} hold{'s' * (len(verdicts) == 1)}.\n"
    return (
        "\n".join([f"**Gate: failed.** {len(violated)} of {count} violated:", "", *(f"- {one}" for one in violated)])
        + "\n"
    )
