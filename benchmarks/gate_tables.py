"""Parts of the documents on gates and reports that are generated from their records."""

import inspect
import re
from typing import Any, get_args

from pydantic import BaseModel

from benchmarks.commands import ROOT
from benchmarks.markdown import load_result, table, with_provenance
from mcpmq.evaluate import Change, Difference, VocabularyDifference
from mcpmq.gate.check import SIZES
from mcpmq.report import Report

GROUP_METRICS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("original.GROUP", Difference),
    ("original.GROUP", VocabularyDifference),
    ("baseline.GROUP", Change),
)


def gate_file() -> str:
    """Return the committed gate of the reference checkpoint."""
    return f"```toml\n{(ROOT / 'benchmarks' / 'gate' / 'gate.toml').read_text()}```"


def gate_metrics() -> str:
    """Return the metrics that a gate can bound."""
    trimmed = [name for name, kind, _ in _fields(VocabularyDifference) if kind == "`Estimate`"]
    rows = [
        [f"`[{section}]`", f"`{name}`", f"{comment}; with a trimmed vocabulary" if name in trimmed else comment]
        for section, record in GROUP_METRICS
        for name, _, comment in _fields(record)
        if record is not VocabularyDifference or name in trimmed
    ]
    score, change = "mean over the samples of a task", "of the mean over samples"
    rows += [["`[original.TASK]`", "`score`", score], ["`[original.TASK]`", "`score_change`", change]]
    rows += [["`[baseline.TASK]`", "`score_change`", change]]
    ratios = [f"{name}_ratio" for name in SIZES]
    for section, names in (("original.artifact", [*SIZES, "nbytes_ratio"]), ("baseline.artifact", ratios)):
        rows += [[f"`[{section}]`", f"`{name}`", ""] for name in names]
    return table(["section", "metric", ""], rows, 3)


def report_schema() -> str:
    """Return every record of report.json with its fields and their comments."""
    parts = []
    for record in _records(Report):
        sentence = (inspect.getdoc(record) or "").split("\n\n")[0].replace("\n", " ")
        rows = [[f"`{name}`", kind, comment] for name, kind, comment in _fields(record)]
        parts.append(f"**{record.__name__}**: {sentence}\n\n{table(['field', 'type', ''], rows, 3)}")
    return "\n\n".join(parts)


def _records(record: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a record and the nested records, each once, in the order of their fields."""
    found: dict[type[BaseModel], None] = {}

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in found:
            found[kind] = None
            for field in kind.model_fields.values():
                visit(field.annotation)
        for inner in get_args(kind):
            visit(inner)

    visit(record)
    return list(found)


def _fields(record: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Return names, types as written, and the comments at the end of the line."""
    lines = inspect.getsource(record).splitlines()
    found = (re.fullmatch(r"    (\w+): ([^=#]+?)(?: = [^#]+?)?(?:  # (.*))?", line) for line in lines)
    return [(one[1], f"`{one[2]}`".replace("|", "\\|"), (one[3] or "").replace("|", "\\|")) for one in found if one]


def gate_power_table() -> str:
    """Return the alarm rate of the committed gate by rise of perplexity and number of samples."""
    result = load_result("gate-power")
    counts = sorted({one["samples"] for one in result["rates"]})
    rows = []
    for increase in dict.fromkeys(one["target_increase"] for one in result["rates"]):
        rates = sorted(
            (one for one in result["rates"] if one["target_increase"] == increase), key=lambda one: one["samples"]
        )
        measured = f"{rates[0]['perplexity_increase'] * 100:+.2f} %"
        name = f"+{increase:.1%}" if increase else f"none: other calibration samples ({measured})"
        alarms = [f"{one['gate_alarm_rate'] * 100:.0f} %" for one in rates]
        rows.append([name, str(rates[0]["builds"]), *alarms, f"{rates[-1]['perplexity_alarm_rate'] * 100:.0f} %"])
    headings = ["rise of perplexity", "builds", *(f"{count} samples" for count in counts), "bound on perplexity, all"]
    return with_provenance(table(headings, rows, 1), result)
