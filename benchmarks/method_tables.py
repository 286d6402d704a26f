"""The table of every way of rounding on every grid, drawn from a committed result."""

import json
from typing import Any

from benchmarks.tables import RESULTS, provenance_of
from mcpmq.evaluate import Estimate
from mcpmq.system.table import megabytes

FILE = RESULTS / "methods.json"
METHODS = {"rtn": "to nearest", "importance": "to nearest, fitted", "gptq": "GPTQ", "best": "the better of both"}
SEEN = {"nothing": "", "text": "text alone", "images": "images alone", "all": "both"}
KIND_HEADS = ("perplexity, %", "KL, 10⁻³", "same first choice, %")
WITHIN = [f"{kind}: {head}" for kind in ("image", "text") for head in KIND_HEADS]
HEAD = ["rounded", "as seen in", "format", "MB", *WITHIN]


def methods_table(grid: str) -> str:
    """All ways on one grid: how far answers about images and about text are from the original's."""
    rows = [one for one in json.loads(FILE.read_text())["rows"] if one["grid"] == grid]
    return "\n".join([f"| {' | '.join(HEAD)} |", "|---|---|---|" + "--:|" * 7, *map(_row, rows)])


def methods_provenance() -> str:
    """Command, commit, machine and versions."""
    return provenance_of(json.loads(FILE.read_text()))


def _row(one: dict[str, Any]) -> str:
    smoothed = one["smooth"] == "awq"
    rounded = "the best of all" if smoothed and one["round"] == "best" else "AWQ, " * smoothed + METHODS[one["round"]]
    named = [rounded, SEEN[one["seen"]], one["format"], megabytes(one["nbytes"]).removesuffix(" MB")]
    cells = [cell for kind in ("image", "text") for cell in _figures(one["kinds"][kind])]
    return f"| {' | '.join([*named, *cells])} |"


def _figures(found: dict[str, Any]) -> list[str]:
    ratio, divergence, agreement = (
        Estimate.model_validate(found[name]) for name in ("perplexity_ratio", "kl_divergence", "top_1_agreement")
    )
    return [
        f"{(ratio.value - 1) * 100:+.2f} ± {ratio.standard_error * 100:.2f}",
        f"{divergence.value * 1000:.2f} ± {divergence.standard_error * 1000:.2f}",
        f"{agreement.value * 100:.1f} ± {agreement.standard_error * 100:.1f}",
    ]
