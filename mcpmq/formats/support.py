"""Supported families and schemes of every format, as data and as tables."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError
from mcpmq.families import FAMILIES
from mcpmq.families.family import Family
from mcpmq.formats import FORMATS, FormatName, declared_format
from mcpmq.formats.format import FLOAT_SCHEMES
from mcpmq.system.table import Row, Table


def support_matrix() -> list[dict[str, Any]]:
    """Return one entry per family: under each format `yes` or the reason why not, and under `caveats` limitations."""
    return [_family_support(family) for family in FAMILIES]


def _family_support(family: Family) -> dict[str, Any]:
    reasons = {name: declared_format(name).unsupported_family(family) for name in FORMATS}
    formats: dict[str, str] = {name: f"no: {reason}" if reason else "yes" for name, reason in reasons.items()}
    return {
        "family": family.name,
        "has_vision": family.has_vision,
        "checkpoints": list(family.hub_ids),
        **formats,
        "caveats": dict(family.caveats),
    }


def no_audio_reason(family: Family, name: str, recipe: Mapping[str, object]) -> str | None:
    """Return why artifacts of a format have no audio encoder; None if they have one, or the model has none.

    `recipe` is the content of a recipe, as in manifests.
    """
    return None if recipe.get("gguf_audio") else dict(family.without_audio).get(name)


def check_audio(family: Family, name: str, recipe: Mapping[str, object], samples: SampleSet) -> None:
    """Check that artifacts of a format have an audio encoder if a sample has audio; see `no_audio_reason`.

    Raises:
        DatasetError: they have none.
    """
    reason, count = no_audio_reason(family, name, recipe), sum(bool(sample.audio) for sample in samples)
    if reason and count:
        raise DatasetError(
            f"{count} samples of `{samples.path}` have audio, and `{name}` has no audio encoder for {family.name}",
            f"{reason}; or give a set without audio",
        )


def support_table() -> Table:
    """Return the same as a table: checkpoints under their family, reasons and limitations as notes."""
    rows: list[Row] = []
    notes = []
    for entry in support_matrix():
        cells = []
        for name in FORMATS:
            note = entry["caveats"].get(name) or (entry[name] if entry[name] != "yes" else "")
            cells.append(entry[name].partition(":")[0] + ("*" if note else ""))
            notes += [f"* {entry['family']}, {name}: {note.removeprefix('no: ')}"] if note else []
        rows.append((entry["family"] + ("" if entry["has_vision"] else " (text only)"), cells))
        rows += [(f"  {checkpoint}", [""] * len(FORMATS)) for checkpoint in entry["checkpoints"]]
    return Table("Families", FORMATS, rows, notes)


def scheme_support() -> dict[str, tuple[FormatName, ...]]:
    """Return the formats that support each scheme for linear layers: integers first, then types of one format, floats.

    A format may support fewer schemes for other tensors, and only shapes of whole groups; `check_plan` decides.
    """
    schemes = dict.fromkeys(scheme for name in FORMATS for scheme in declared_format(name).schemes)
    return {
        scheme: tuple(name for name in FORMATS if scheme in declared_format(name).schemes)
        for scheme in sorted(schemes, key=_scheme_order)
    }


def _scheme_order(scheme: str) -> tuple[bool, bool, str, bool, int]:
    bits, _, group = scheme.partition("-")
    size = group.removesuffix("-asym").removeprefix("g")
    is_integer = scheme.startswith("int")
    rank = int(size) if size.isdigit() else 1 << 30  # whole rows after groups
    return scheme in FLOAT_SCHEMES, not is_integer, bits if is_integer else "", scheme.endswith("-asym"), rank


def scheme_table() -> Table:
    """Return the same as a table in which schemes of equal support share a row."""
    rows: list[Row] = [
        (", ".join(f"`{scheme}`" for scheme, _ in group), ["yes" if name in formats else "" for name in FORMATS])
        for formats, group in groupby(scheme_support().items(), key=lambda item: item[1])
    ]
    return Table("Schemes", FORMATS, rows)
