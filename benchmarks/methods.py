"""Every way of rounding on every grid, in every format that holds it: how far each artifact is from the original.

python -m benchmarks.methods

Only the matrices of the language model are rounded and all else is kept, so that a difference is the method's own; one
grid takes the same bytes whatever the method. Statistics come from the whole calibration set, or from its samples
without or with an image alone.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.run import HELDOUT, PACKAGES, REFERENCE, RESULTS, ROOT, STARTER, timed
from mcpmq.evaluate import Difference
from mcpmq.report import Entry, Report
from mcpmq.system.environment import describe_machine

WORK = ROOT / "build" / "benchmarks" / "methods"
FORMATS = {"int4-g32": ("gguf", "onnx"), "q4_k": ("gguf",), "int8-g32": ("gguf", "onnx")}
ROUNDED_BY = (  # method, smoothing, and the samples that decided
    ("rtn", "none", "nothing"),
    ("importance", "none", "text"),
    ("importance", "none", "images"),
    ("importance", "none", "all"),
    ("gptq", "none", "text"),
    ("gptq", "none", "images"),
    ("gptq", "none", "all"),
    ("rtn", "awq", "all"),
    ("gptq", "awq", "all"),
    ("best", "none", "all"),
    ("best", "awq", "all"),
)
WITH_8_BITS = (("rtn", "none", "nothing"), ("gptq", "none", "all"), ("gptq", "awq", "all"), ("best", "awq", "all"))
FIGURES = ("perplexity_ratio", "kl_divergence", "kl_divergence_99th_percentile", "top_1_agreement")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to round the language model; `seen` are the samples that decide."""

    grid: str
    round: str
    smooth: str
    seen: str

    @property
    def name(self) -> str:
        """`q4_k-awq-gptq-images`, a folder's name and the recipe's."""
        return "-".join(word for word in (self.grid, self.smooth, self.round, self.seen) if word != "none")

    def recipe(self) -> str:
        """The TOML file."""
        lines = [f'name = "{self.name}"', f'round = "{self.round}"', f'smooth = "{self.smooth}"']
        return "\n".join([*lines, "[weights]", f'"language.*" = "{self.grid}"', ""])


def ways() -> list[Way]:
    """All that are measured."""
    return [
        Way(grid, *method) for grid in FORMATS for method in (WITH_8_BITS if grid.startswith("int8") else ROUNDED_BY)
    ]


def sets() -> dict[str, Path]:
    """The folders of samples, by what they hold."""
    lines = (STARTER / "manifest.jsonl").read_text().splitlines()
    for name, wanted in (("text", False), ("images", True)):
        folder = WORK / "samples" / name
        shutil.copytree(STARTER / "images", folder / "images")
        kept = [line for line in lines if ("image" in json.loads(line)) is wanted]
        (folder / "manifest.jsonl").write_text("\n".join(kept) + "\n")
    return {"all": STARTER, "text": WORK / "samples" / "text", "images": WORK / "samples" / "images"}


def made(way: Way, samples: dict[str, Path]) -> Iterator[Path]:
    """Quantize in one way and export to every format that holds its grid."""
    recipe, codes = WORK / f"{way.name}.toml", WORK / way.name / "quantized"
    recipe.write_text(way.recipe())
    seeing = ["--calibration", samples[way.seen]] if way.seen in samples else []
    timed("quantize", REFERENCE, codes, "--recipe", recipe, *seeing, out=codes)
    for name in FORMATS[way.grid]:
        timed("export", codes, WORK / way.name / name, "--format", name, out=WORK / way.name / name)
        yield WORK / way.name / name


def row(way: Way, entry: Entry) -> dict[str, Any]:
    """What is kept of one artifact's measurement."""
    facts = {"grid": way.grid, "round": way.round, "smooth": way.smooth, "seen": way.seen, "format": entry.kind}
    found = {kind: _figures(difference) for kind, difference in entry.differences.items()}
    return {**facts, "nbytes": entry.measurement.nbytes, "kinds": found}


def _figures(difference: Difference) -> dict[str, Any]:
    return difference.model_dump(mode="json", include=set(FIGURES))


def main() -> None:
    """Make everything, measure everything in one run, keep the figures with what they were made by."""
    shutil.rmtree(WORK, ignore_errors=True)
    samples, asked = sets(), ways()
    artifacts = {path: way for way in asked for path in made(way, samples)}
    out = WORK / "report"
    timed("evaluate", *artifacts, "--against", REFERENCE, "--on", HELDOUT, "--out", out, out=out)
    report = Report.load(out)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    facts = {
        "command": "python -m benchmarks.methods",
        "commit": commit.stdout.strip(),
        "machine": describe_machine(),
        "versions": {package: version(package) for package in (*PACKAGES, "onnxruntime")},
        "samples": {kind: result.samples for kind, result in report.original.kinds.items()},
        "rows": [row(way, entry) for way, entry in zip(artifacts.values(), report.artifacts, strict=True)],
    }
    (RESULTS / "methods.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
