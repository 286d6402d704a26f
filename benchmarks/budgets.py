"""Mixes that were found for several sizes beside the fixed recipes: what a byte is worth, measured in llama.cpp.

python -m benchmarks.budgets            finds them anew
python -m benchmarks.budgets --found    takes those of benchmarks/results/budgets
"""

import argparse
import json
import shutil
from pathlib import Path

from benchmarks.run import HELDOUT, REFERENCE, RESULTS, STARTER, WORK, provenance, timed
from mcpmq.artifact import Artifact
from mcpmq.report import Report

FOLDER, RECIPES = WORK.parent / "budgets", RESULTS / "budgets"
FIXED = ("phone-int4", "quality-int4", "phone-int8", "calibrated-int4", "calibrated-quality-int4")
SMALL = (6_500_000, 7_000_000, 8_000_000)  # below every fixed recipe; the other budgets are the sizes of fixed ones


def artifact_of(recipe: str, folder: Path) -> Path:
    """The reference by a recipe, as GGUF."""
    out = folder / folder.name
    seeing = ["--calibration", STARTER] if recipe.startswith("calibrated") or recipe.endswith(".toml") else []
    timed("quantize", REFERENCE, folder / "codes", "--recipe", recipe, *seeing, out=folder)
    timed("export", folder / "codes", out, "--format", "gguf", out=folder)
    return out


def fitted(nbytes: int, found: bool) -> Path:
    """The reference by the best mix of a size."""
    recipe = RECIPES / f"fit-{nbytes}.toml"
    if not found:
        size = ["--max-size", str(nbytes), "--format", "gguf"]
        timed("fit", REFERENCE, recipe, *size, "--calibration", STARTER, out=RECIPES)
    return artifact_of(str(recipe), FOLDER / f"fit-{nbytes}")


def main(found: bool) -> None:
    """Make everything, measure it at once, keep the report."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    RECIPES.mkdir(exist_ok=True)
    fixed = [artifact_of(recipe, FOLDER / recipe) for recipe in FIXED]
    sizes = sorted({sum(Artifact.open(path).nbytes_by_component().values()) for path in fixed[:3]})
    mixes = [fitted(nbytes, found) for nbytes in (*SMALL, *sizes)]
    timed("evaluate", *fixed, *mixes, "--against", REFERENCE, "--on", HELDOUT, "--out", FOLDER / "report", out=FOLDER)
    record(Report.load(FOLDER / "report"))


def record(report: Report) -> None:
    """Keep what the table is drawn from, with the command, the commit, the machine and the versions."""
    rows = [
        {
            "recipe": entry.recipe,
            "nbytes": entry.measurement.nbytes,
            "kl_divergence": {kind: one.kl_divergence.model_dump() for kind, one in entry.differences.items()},
        }
        for entry in report.artifacts
    ]
    facts = {**provenance("benchmarks.budgets"), "measured_on": report.measured_on.model_dump(), "artifacts": rows}
    (RESULTS / "budgets.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--found", action="store_true")
    main(parser.parse_args().found)
