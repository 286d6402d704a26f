"""Which models are supported, and what every format does with them: as facts, and as a table."""

from typing import Any

from mcpmq.families import FAMILIES
from mcpmq.families.family import Family
from mcpmq.formats import FORMATS
from mcpmq.table import Row, Table

COLUMNS = ("checkpoints", *FORMATS)


def facts() -> list[dict[str, Any]]:
    """One entry a family; under each format `yes`, or why it is refused, and under `caveats` what differs."""
    return [_facts(family) for family in FAMILIES]


def _facts(family: Family) -> dict[str, Any]:
    refused = dict(family.refusals)
    formats: dict[str, str] = {name: f"refused: {refused[name]}" if name in refused else "yes" for name in FORMATS}
    return {
        "family": family.name,
        "sees": family.sees,
        "checkpoints": list(family.published),
        **formats,
        "caveats": dict(family.caveats),
    }


def table() -> Table:
    """The same for people; what differs or is refused stands under the table."""
    rows: list[Row] = []
    notes = []
    for fact in facts():
        told = {"checkpoints": ", ".join(fact["checkpoints"])}
        for name in FORMATS:
            said = fact["caveats"].get(name) or (fact[name] if fact[name] != "yes" else "")
            told[name] = fact[name].partition(":")[0] + ("*" if said else "")
            notes += [f"* {fact['family']}, {name}: {said.removeprefix('refused: ')}"] if said else []
        rows.append((fact["family"] + ("" if fact["sees"] else " (text only)"), [told[column] for column in COLUMNS]))
    return Table("Families", COLUMNS, rows, notes)
