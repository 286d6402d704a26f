"""Collect size and mean KLD of the built-in recipes from the committed results, for `mcpmq recipes`.

python -m benchmarks.recipe_results     writes mcpmq/recipes/measured.json
"""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.commands import RESULTS
from benchmarks.markdown import estimates
from mcpmq.evaluate import Estimate
from mcpmq.formats.recipes import MEASURED_FILE
from mcpmq.recipe import builtin_recipes
from mcpmq.report import Report

REPORTS = ("reference", "calibrated", "hugging-face")  # of one checkpoint on one set
GROUPS = ("image", "text")
SEARCHED = "search-"  # beginning of the names of searched recipes
ORIGINAL_BITS = 16


def collect() -> dict[str, Any]:
    """Return the content of the packaged file; the first result of a recipe in a format is used."""
    reports = [Report.load(RESULTS / f"{name}.json") for name in REPORTS]
    results = [result for report in reports for result in report.artifacts]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        klds = {group: one.kl_divergence for group, one in result.differences.items()}
        row = _row(result.recipe, result.kind, result.measurement.nbytes, result.weights.bits_per_weight, klds)
        rows.setdefault((result.recipe, result.kind), row)
    bits = {result.recipe: result.weights.bits_per_weight for result in results}  # equal in all formats
    searched = []
    for one in json.loads((RESULTS / "budgets.json").read_text())["artifacts"]:
        weight_bits = bits.get(one["recipe"], one["nbytes"] / reports[0].original.nbytes * ORIGINAL_BITS)
        row = _row(one["recipe"], "gguf", one["nbytes"], weight_bits, estimates(one["kl_divergence"]))
        if one["recipe"].startswith(SEARCHED):
            searched.append(row)
        else:
            rows.setdefault((one["recipe"], "gguf"), row)
    first = reports[0]
    return {
        "checkpoint": first.checkpoint.name,
        "eval_set": first.eval_set.name,
        "samples": first.eval_set.samples,
        "original_nbytes": first.original.nbytes,
        "recipes": [rows[key] for key in sorted(rows) if key[0] in builtin_recipes()],
        "searched": searched,
    }


def _row(recipe: str, kind: str, nbytes: int, bits: float, klds: Mapping[str, Estimate]) -> dict[str, Any]:
    mean_kld = {group: [klds[group].value, round(klds[group].half_width, 8)] for group in GROUPS}
    sizes = {"nbytes": nbytes, "bits_per_weight": bits}
    return {"recipe": recipe, "format": kind, **sizes, "mean_kld": mean_kld}


if __name__ == "__main__":
    MEASURED_FILE.write_text(json.dumps(collect(), indent=1) + "\n")
