"""What tokens of images, of prompts and of answers should weigh while the language model is calibrated.

python -m benchmarks.token_weights

Only the matrices of the language model are rounded, by GPTQ from the whole calibration set; every row is measured in
llama.cpp against the original on the held-out set.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods import FIGURES
from benchmarks.run import HELDOUT, REFERENCE, RESULTS, ROOT, STARTER, provenance, timed
from benchmarks.tables import provenance_of
from mcpmq.evaluate import Estimate
from mcpmq.report import Report

WORK, FILE = ROOT / "build" / "benchmarks" / "modalities", RESULTS / "modalities.json"
GRIDS = ("int4-g32", "q4_k")
WEIGHTS = ((1, 1, 1), (0.3, 1, 1), (0.1, 1, 1), (0, 1, 1), (3, 1, 1), (1, 1, 3), (1, 1, 10), (0.3, 1, 3))


@dataclass(frozen=True, slots=True)
class Weighing:
    """One grid, and what a token of each kind weighs."""

    grid: str
    vision: float
    text: float
    answer: float

    @property
    def name(self) -> str:
        """`q4_k-0.3-1-1`"""
        return f"{self.grid}-{self.vision:g}-{self.text:g}-{self.answer:g}"

    def recipe(self) -> str:
        """The TOML file."""
        weights = [f"{kind} = {getattr(self, kind)}" for kind in ("vision", "text", "answer")]
        schemes = ["[weights]", f'"language.*" = "{self.grid}"']
        return "\n".join([f'name = "{self.name}"', 'round = "gptq"', "[modalities]", *weights, *schemes, ""])


def made(weighing: Weighing) -> Path:
    """The artifact."""
    recipe, codes, out = (WORK / f"{weighing.name}{ending}" for ending in (".toml", "", ".gguf"))
    recipe.write_text(weighing.recipe())
    timed("quantize", REFERENCE, codes, "--recipe", recipe, "--calibration", STARTER, "--device", "cpu", out=codes)
    timed("export", codes, out, "--format", "gguf", out=out)
    return out


def table() -> str:
    """Divergence from the original by kind of answer, one row for every weighing."""
    if not FILE.is_file():
        return "Not measured yet: `python -m benchmarks.token_weights`."
    facts = json.loads(FILE.read_text())
    heads = ["grid", "image token", "prompt token", "answer token", "image: KL, 10⁻³", "text: KL, 10⁻³"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * 5, *map(_row, facts["rows"])]
    return "\n".join([*lines, "", provenance_of(facts)])


def _row(one: dict[str, Any]) -> str:
    found = [Estimate.model_validate(one["kinds"][kind]["kl_divergence"]) for kind in ("image", "text")]
    cells = [f"{each.value * 1000:.2f} ± {each.standard_error * 1000:.2f}" for each in found]
    return f"| {' | '.join([one['grid'], *(f'{one[kind]:g}' for kind in ('vision', 'text', 'answer')), *cells])} |"


def main() -> None:
    """Make all, measure all in one run, keep the figures."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    artifacts = {made(weighing): weighing for weighing in (Weighing(grid, *each) for grid in GRIDS for each in WEIGHTS)}
    out = WORK / "report"
    timed("evaluate", *artifacts, "--against", REFERENCE, "--on", HELDOUT, "--out", out, out=out)
    rows = [
        asdict(weighing)
        | {
            "kinds": {
                kind: found.model_dump(mode="json", include=set(FIGURES)) for kind, found in entry.differences.items()
            }
        }
        for weighing, entry in zip(artifacts.values(), Report.load(out).artifacts, strict=True)
    ]
    FILE.write_text(json.dumps(provenance("benchmarks.token_weights") | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
