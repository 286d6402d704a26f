"""Write verdicts as JUnit XML, SARIF, Markdown, or HTML."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from mcpmq.gate.verdict import Verdict, headline, verdict_table
from mcpmq.report import Report, render_html
from mcpmq.report.report import JSON_FILE
from mcpmq.system.durable_file import write_durably
from mcpmq.system.escaping import escape_cell, escape_controls, escape_markdown
from mcpmq.system.output import output_errors

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
METRIC_DESCRIPTIONS = {
    "loss_increase": "Increase of the mean loss of answer tokens, in nats",
    "perplexity": "Perplexity of the answers, relative to the reference",
    "kl_divergence": "Mean KL divergence from the original per answer token, in nats",
    "kl_divergence_99th_percentile": "99th percentile of the KL divergence over answer tokens, in nats",
    "kl_divergence_largest": "Largest KL divergence of an answer token, in nats",
    "kl_divergence_increase": "Increase of the mean KL divergence from the original, in nats",
    "top_1_agreement": "Share of answer tokens with the same most probable token as the original",
    "top_1_agreement_change": "Change of the share of answer tokens with the most probable token of the original",
    "probability_change": "Mean change of the probability of the answer token",
    "greedy_agreement": "Share of answers with the same most probable token at every position",
    "exact_match_change": "Change of the share of answers that greedy decoding reproduces",
    "removed_probability": "Mean probability that the original gives to the tokens that a trimmed vocabulary lacks",
    "character_perplexity": "Perplexity per character of the answers, in a trimmed vocabulary",
    "original_character_perplexity": "Perplexity per character of the answers, of the original",
    "score": "Mean score of the samples of a task",
    "score_change": "Change of the mean score of a task, paired by sample",
    "nbytes": "Size of all files of the artifact",
    "bits_per_weight": "Bits per weight",
    "peak_rss_bytes": "Peak memory of the engine",
    "kv_cache_bytes_per_token": "Bytes of the KV cache for one token",
    "tokens_per_second": "Tokens per second of the evaluation",
}


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
        report_file = source / JSON_FILE if source.is_dir() else source
        texts: dict[Path | None, Callable[[], str]] = {
            self.junit: lambda: junit_xml(verdicts),
            self.sarif: lambda: sarif_json(verdicts, report_file),
            self.html: lambda: render_html(report, verdict_table(verdicts), failed=_count(verdicts, "failed") > 0),
        }
        for file, render in texts.items():
            if file:
                with output_errors(file):
                    _write(file, render())
        if self.summary:
            with output_errors(self.summary), self.summary.open("a", encoding="utf-8") as stream:
                stream.write(summary_markdown(verdicts))


def _write(file: Path, text: str) -> None:
    """Replace a file atomically; a pipe or a device is written to."""
    if file.exists() and not file.is_file():
        file.write_text(text, encoding="utf-8")
    else:
        write_durably(file, text)


def junit_xml(verdicts: Sequence[Verdict]) -> str:
    """Return JUnit XML with a test case for every bound: value, limits and margin are its output.

    Elements and attributes are those that Jenkins, GitLab and GitHub actions read.
    """
    suites = ElementTree.Element("testsuites")
    counts = {"tests": len(verdicts), "failures": _count(verdicts, "failed"), "errors": 0}
    counts |= {"skipped": _count(verdicts, "skipped"), "time": 0}
    attributes = {name: str(count) for name, count in counts.items()}
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "mcpmq check", **attributes})
    for verdict in verdicts:
        name = escape_controls(f"{verdict.group} {verdict.metric} against the {verdict.reference}")
        labels = {"classname": escape_controls(verdict.artifact), "name": name, "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", labels)
        if verdict.status == "failed":
            failure = ElementTree.SubElement(case, "failure", message=escape_controls(verdict.problem), type="bound")
            failure.text = escape_controls(str(verdict))
        elif verdict.status == "skipped":
            ElementTree.SubElement(case, "skipped").text = escape_controls(verdict.skipped)
        if output := _output(verdict):
            ElementTree.SubElement(case, "system-out").text = escape_controls(output)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _count(verdicts: Sequence[Verdict], status: str) -> int:
    return sum(verdict.status == status for verdict in verdicts)


def _output(verdict: Verdict) -> str:
    names = ("value [95 % interval]", "allowed", "margin")
    return "; ".join(f"{name}: {cell}" for name, cell in zip(names, verdict.cells(), strict=False) if cell)


def sarif_json(verdicts: Sequence[Verdict], report: Path) -> str:
    """Return SARIF 2.1.0 (OASIS) with a result for every violated bound, located in the line of the gate file.

    A violation without a gate file is located in the report. Locations are relative to the working directory; of a
    file outside of it only the name is written.
    """
    violated = [verdict for verdict in verdicts if verdict.status == "failed"]
    metrics = list(dict.fromkeys(verdict.metric for verdict in violated))
    results = [
        {
            "ruleId": escape_controls(verdict.metric),
            "ruleIndex": metrics.index(verdict.metric),
            "level": "error",
            "message": {"text": _sarif_text(str(verdict))},
            "locations": [_location(verdict.gate or report, verdict.line)],
            "relatedLocations": [_location(report, 1) | {"message": {"text": "the report"}}],
        }
        for verdict in violated
    ]
    driver = {"name": "mcpmq", "version": version("mcpmq"), "rules": [_rule(metric) for metric in metrics]}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(metric: str) -> dict[str, object]:
    description = METRIC_DESCRIPTIONS.get(metric.removesuffix("_ratio"), METRIC_DESCRIPTIONS.get(metric))
    text = description or f"The bound of {escape_controls(metric)} cannot be checked"
    return {"id": escape_controls(metric), "shortDescription": {"text": _sarif_text(text)}}


def _location(file: Path, line: int) -> dict[str, object]:
    return {"physicalLocation": {"artifactLocation": {"uri": _relative_uri(file)}, "region": {"startLine": line}}}


def _relative_uri(file: Path) -> str:
    absolute, root = Path(os.path.abspath(file)), Path.cwd()  # noqa: PTH100 - links stay
    relative = absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.name
    return quote(os.fsencode(relative))


def _sarif_text(text: str) -> str:
    """Return plain text; `](` would make a link of the text before it (SARIF 2.1.0, 3.11.6)."""
    return escape_controls(text).replace("](", "] (")


def summary_markdown(verdicts: Sequence[Verdict]) -> str:
    """Return Markdown for a step summary: the result, the violated and skipped bounds, then all bounds to unfold."""
    lines = [f"### Gate {headline(verdicts)}", ""]
    if others := [verdict for verdict in verdicts if not verdict.passed]:
        lines += [*_markdown_table(others), "", *(f"- {escape_markdown(str(verdict))}" for verdict in others), ""]
    if passed := [verdict for verdict in verdicts if verdict.passed]:
        lines += ["<details><summary>Bounds that hold</summary>", "", *_markdown_table(passed), "", "</details>", ""]
    return "\n".join(lines)


def _markdown_table(verdicts: Sequence[Verdict]) -> list[str]:
    head = ["artifact", "reference", "samples", "metric", "value [95 % interval]", "allowed", "margin", "result"]
    rows = [[one.artifact, one.reference, one.group, one.metric, *one.cells()] for one in verdicts]
    lines = [head, [*["---"] * 4, *["---:"] * 3, "---"], *([escape_cell(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
