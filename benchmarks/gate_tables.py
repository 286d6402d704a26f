"""The parts of the documentation that tell of gates and reports, made from the records that hold them."""

import inspect
import json
import re
from typing import Any, get_args

from pydantic import BaseModel

from benchmarks.tables import RESULTS, ROOT, provenance_of
from mcpmq.evaluate import Change, Difference
from mcpmq.gate.check import SIZES
from mcpmq.report import Report


def gate_file() -> str:
    """The gate that the project's own continuous integration holds the reference checkpoint to."""
    return f"```toml\n{(ROOT / 'benchmarks' / 'gate' / 'gate.toml').read_text()}```"


def gate_metrics() -> str:
    """What a gate may bound, asked of the records that hold it."""
    rows = ["| in | metric | |", "|---|---|---|"]
    for place, record in (("original.KIND", Difference), ("baseline.KIND", Change)):
        rows += [f"| `[{place}]` | `{name}` | {told} |" for name, _, told in _fields(record)]
    for place, names in (("original.artifact", (*SIZES, "nbytes_ratio")), ("baseline.artifact", _ratios())):
        rows += [f"| `[{place}]` | `{name}` | |" for name in names]
    return "\n".join(rows)


def _ratios() -> list[str]:
    return [f"{name}_ratio" for name in SIZES]


def report_schema() -> str:
    """Every record of report.json, its fields, and what is said of them."""
    parts = []
    for record in _records(Report):
        told = (inspect.getdoc(record) or "").split("\n\n")[0].replace("\n", " ")
        rows = [f"| `{name}` | {kind} | {said} |" for name, kind, said in _fields(record)]
        parts.append("\n".join([f"**{record.__name__}**: {told}", "", "| field | | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _records(record: type[BaseModel]) -> list[type[BaseModel]]:
    """A record and those inside it, each once, in the order of their fields."""
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
    """Names, types as they are written, and the comments beside them."""
    lines = inspect.getsource(record).splitlines()
    found = (re.fullmatch(r"    (\w+): ([^=#]+?)(?: = [^#]+?)?(?:  # (.*))?", line) for line in lines)
    return [(one[1], f"`{one[2]}`".replace("|", "\\|"), (one[3] or "").replace("|", "\\|")) for one in found if one]


def detection_table() -> str:
    """How often the gate raises an alarm, by the injected rise of perplexity and the number of samples."""
    facts = json.loads((RESULTS / "detection.json").read_text())
    counts = sorted({one["samples"] for one in facts["rates"]})
    heads = [f"{count} samples" for count in counts]
    rows = [f"| rise of perplexity | builds | {' | '.join(heads)} | by perplexity, all |", "|---|--:|" + "--:|" * 5]
    for effect in dict.fromkeys(one["effect"] for one in facts["rates"]):
        rates = [one for one in facts["rates"] if one["effect"] == effect]
        cells = [f"{one['gate_alarms'] * 100:.0f} %" for one in sorted(rates, key=lambda one: one["samples"])]
        name = f"+{effect:.1%}" if effect else f"none: other calibration samples ({rates[0]['rise'] * 100:+.2f} %)"
        rows.append(
            f"| {name} | {rates[0]['builds']} | {' | '.join(cells)} | {rates[-1]['perplexity_alarms'] * 100:.0f} % |"
        )
    return "\n".join([*rows, "", provenance_of(facts)])
