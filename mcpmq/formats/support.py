"""Which models are supported, and what every format does with them: as facts, and as a table."""

from typing import Any

from mcpmq.families import FAMILIES
from mcpmq.families.family import Family
from mcpmq.formats import FORMATS
from mcpmq.system.table import Row, Table


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
    """The same for people: under a family its checkpoints, and under the table what differs or is refused."""
    rows: list[Row] = []
    notes = []
    for fact in facts():
        cells = []
        for name in FORMATS:
            said = fact["caveats"].get(name) or (fact[name] if fact[name] != "yes" else "")
            cells.append(fact[name].partition(":")[0] + ("*" if said else ""))
            notes += [f"* {fact['family']}, {name}: {said.removeprefix('refused: ')}"] if said else []
        rows.append((fact["family"] + ("" if fact["sees"] else " (text only)"), cells))
        rows += [(f"  {checkpoint}", [""] * len(FORMATS)) for checkpoint in fact["checkpoints"]]
    return Table("Families", FORMATS, rows, notes)
