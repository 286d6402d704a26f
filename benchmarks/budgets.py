"""Evaluate mixed-precision recipes of six sizes and the fixed recipes in llama.cpp.

python -m benchmarks.budgets            searches the recipes
python -m benchmarks.budgets --reuse    takes the recipes of benchmarks/results/budgets
"""

import argparse
import shutil
from pathlib import Path

from benchmarks.commands import (
    REFERENCE,
    RESULTS,
    STARTER,
    WORK,
    evaluate,
    provenance,
    recipe_argument,
    run_command,
    write_result,
)
from mcpmq.artifact import Artifact
from mcpmq.report import Report

BUDGETS_WORK, SEARCHED_RECIPES = WORK / "budgets", RESULTS / "budgets"
FIXED_RECIPES = (
    *("phone-int4", "quality-int4", "phone-int8"),
    *("calibrated-int4", "calibrated-gguf-int4", "calibrated-quality-int4"),
)
# Smaller than every fixed recipe; the other sizes are those of the uncalibrated recipes.
SMALL_SIZES = (6_500_000, 7_000_000, 8_000_000)


def build_artifact(recipe: str, folder: Path) -> Path:
    """Write the GGUF artifact of a recipe."""
    out = folder / folder.name
    calibrated = recipe.startswith("calibrated") or recipe.endswith(".toml")
    calibration = ["--calibration", STARTER] if calibrated else []
    run_command("quantize", REFERENCE, folder / "codes", "--recipe", recipe_argument(recipe), *calibration, out=folder)
    run_command("export", folder / "codes", out, "--format", "gguf", out=folder)
    return out


def build_searched(nbytes: int, reuse: bool) -> Path:
    """Write the artifact of the most accurate recipe of at most `nbytes` bytes."""
    recipe = SEARCHED_RECIPES / f"search-{nbytes}.toml"
    if not reuse:
        options = ("--max-size", nbytes, "--format", "gguf", "--calibration", STARTER)
        run_command("search", REFERENCE, recipe, *options, out=SEARCHED_RECIPES)
    return build_artifact(str(recipe), BUDGETS_WORK / f"search-{nbytes}")


def main(reuse: bool) -> None:
    """Build all artifacts, evaluate them in one run, and record the metrics."""
    shutil.rmtree(BUDGETS_WORK, ignore_errors=True)
    SEARCHED_RECIPES.mkdir(exist_ok=True)
    fixed = [build_artifact(recipe, BUDGETS_WORK / recipe) for recipe in FIXED_RECIPES]
    sizes = sorted({sum(Artifact.open(path).nbytes_by_component().values()) for path in fixed[:3]})
    searched = [build_searched(nbytes, reuse) for nbytes in (*SMALL_SIZES, *sizes)]
    write_metrics(evaluate([*fixed, *searched], BUDGETS_WORK / "report"))


def write_metrics(report: Report) -> None:
    """Record size and KL divergence of every artifact."""
    rows = [
        {
            "recipe": result.recipe,
            "nbytes": result.measurement.nbytes,
            "kl_divergence": {group: one.kl_divergence.model_dump() for group, one in result.differences.items()},
        }
        for result in report.artifacts
    ]
    facts = {"eval_set": report.eval_set.model_dump(), "artifacts": rows}
    write_result("budgets", provenance("benchmarks.budgets") | facts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reuse", action="store_true", help="do not search")
    main(parser.parse_args().reuse)
