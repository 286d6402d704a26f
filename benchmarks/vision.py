"""Vision tower and connector on every grid, calibrated and not, in every engine: what it costs, weighs and takes.

python -m benchmarks.vision                     the reference: quality, bytes, milliseconds a slice; components apart
python -m benchmarks.vision --real-size         random weights of MiniCPM-V 2.6's true widths: bytes, seconds a slice

All but vision and connector is kept in 32-bit floats, so that a difference is theirs.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_size import write as write_real_size
from benchmarks.run import HELDOUT, REFERENCE, RESULTS, ROOT, STARTER, provenance, timed
from mcpmq.report import Report
from mcpmq.report.ablation import Split

WORK, REAL_WORK = (ROOT / "build" / "benchmarks" / name for name in ("vision", "vision-real-size"))
FIGURES = ("perplexity_ratio", "kl_divergence", "top_1_agreement")
SLICES, ROUNDS = 10, 5  # encoded at a time, and how often; the quickest counts
IMAGES_SHOWN = 6  # to the random model of true size, whose ranges say nothing anyway


@dataclass(frozen=True, slots=True)
class Way:
    """One way to store and compute vision and connector."""

    format: str
    scheme: str
    positions: str  # the scheme of the table of position embeddings
    round: str = "rtn"
    smooth: str = "none"
    inputs: str = ""  # what inputs of matrices are rounded to beforehand

    @property
    def name(self) -> str:
        """A folder's name, and the recipe's."""
        parts = (self.format, self.scheme, self.inputs, self.smooth, self.round)
        return "-".join(part for part in parts if part not in ("", "none"))

    @property
    def looks(self) -> bool:
        """Whether calibration samples decide anything."""
        return self.round != "rtn" or bool(self.inputs)

    def recipe(self, others: str) -> str:
        """The TOML file; `others` is the scheme of the language model."""
        lines = [f'name = "{self.name}"', f'round = "{self.round}"', f'smooth = "{self.smooth}"']
        if self.inputs:
            lines += ["[activations]", f'"vision.*" = "{self.inputs}"', f'"projector.*" = "{self.inputs}"']
        schemes = {
            "*": others,
            "vision.*": self.scheme,
            "projector.*": self.scheme,
            "vision.position_embedding": self.positions,
        }
        return "\n".join([*lines, "[weights]", *(f'"{glob}" = "{scheme}"' for glob, scheme in schemes.items()), ""])


WAYS = (
    Way("gguf", "f16", "f16"),
    *(Way("gguf", scheme, "q8_0", method) for scheme in ("q8_0", "q4_0", "iq4_nl") for method in ("rtn", "gptq")),
    Way("onnx", "f32", "f32"),
    *(Way("onnx", scheme, "int8-g32", method) for scheme in ("int8-row", "int4-g32") for method in ("rtn", "gptq")),
    Way("onnx", "int8-row", "int8-g32", "rtn", inputs="u8"),
    Way("onnx", "int8-row", "int8-g32", "gptq", inputs="u8"),
    Way("onnx", "int8-row", "int8-g32", "gptq", "smoothquant", "u8"),
)
REAL_WAYS = tuple(way for way in WAYS if way.round == "rtn")


def made(way: Way, checkpoint: Path, samples: Path, work: Path, others: str) -> Path:
    """The artifact of one way."""
    recipe, codes, out = work / f"{way.name}.toml", work / way.name / "quantized", work / way.name / way.format
    recipe.write_text(way.recipe(others))
    seeing = ["--calibration", samples] if way.looks else []
    timed("quantize", checkpoint, codes, "--recipe", recipe, *seeing, out=codes)
    timed("export", codes, out, "--format", way.format, out=out)
    shutil.rmtree(codes)
    return out


def seconds_a_slice(artifact: Path, kind: str, side: int, slices: int, rounds: int, threads: int = 2) -> float:
    """Of noise, in the artifact's own engine."""
    runner = import_module(f"mcpmq.runners.{kind}").open_runner(artifact, threads)
    pixels = np.random.default_rng(0).integers(0, 256, (slices, side, side, 3), np.uint8)
    runner.see(pixels[0])
    passed = []
    for _ in range(rounds):
        start = time.perf_counter()
        for one in pixels:
            runner.see(one)
        passed.append((time.perf_counter() - start) / slices)
    return min(passed)


def facts_of(way: Way, artifact: Path) -> dict[str, Any]:
    """What a row says of how it was made, and the bytes of the files that see."""
    files = json.loads((artifact / "mcpmq.json").read_text())["files"]
    nbytes = sum(file["nbytes"] for file in files if file["component"] == "vision+projector")
    told = {"format": way.format, "scheme": way.scheme, "round": way.round, "smooth": way.smooth, "inputs": way.inputs}
    return {**told, "nbytes": nbytes}


def reference() -> Iterator[dict[str, Any]]:
    """A row for every way: what it costs on held-out images, what it weighs and takes."""
    artifacts = {made(way, REFERENCE, STARTER, WORK, "f32"): way for way in WAYS}
    out = WORK / "report"
    timed("evaluate", *artifacts, "--against", REFERENCE, "--on", HELDOUT, "--out", out, out=out)
    for (artifact, way), entry in zip(artifacts.items(), Report.load(out).artifacts, strict=True):
        found = entry.differences["image"].model_dump(mode="json", include=set(FIGURES))
        machine = entry.measurement.machine_dependent
        peaks = {
            "peak_resident_bytes": machine.peak_resident_bytes,
            "in_turn_peak_resident_bytes": machine.in_turn_peak_resident_bytes,
        }
        seconds = seconds_a_slice(artifact, way.format, 112, SLICES, ROUNDS)
        yield {**facts_of(way, artifact), "image": found, **peaks, "seconds_a_slice": seconds}


def components() -> None:
    """What every component costs where all have the same 4 bits, calibrated and not."""
    for method in ("rtn", "gptq"):
        recipe, codes = WORK / f"int4-{method}.toml", WORK / f"int4-{method}"
        recipe.write_text(f'name = "int4-{method}"\nround = "{method}"\n[weights]\n"*" = "int4-g32"\n')
        seeing = [] if method == "rtn" else ["--calibration", STARTER]
        timed("quantize", REFERENCE, codes, "--recipe", recipe, *seeing, out=codes)
        out = WORK / f"split-{method}"
        timed("evaluate", codes, "--by-component", "--against", REFERENCE, "--on", HELDOUT, "--out", out, out=out)
        split = Split.model_validate_json((out / "components.json").read_bytes())
        (RESULTS / f"components-{method}.json").write_text(split.model_dump_json() + "\n")


def real_size() -> Iterator[dict[str, Any]]:
    """A row for every way that rounds to nearest: bytes and seconds do not depend on what the numbers are."""
    checkpoint, shown = REAL_WORK / "checkpoint", REAL_WORK / "shown"
    write_real_size(checkpoint, 1)
    shutil.copytree(STARTER / "images", shown / "images")
    lines = [line for line in (STARTER / "manifest.jsonl").read_text().splitlines() if '"image"' in line]
    (shown / "manifest.jsonl").write_text("\n".join(lines[:IMAGES_SHOWN]) + "\n")
    for way in REAL_WAYS:
        others = "q8_0" if way.format == "gguf" else "int8-g32"
        artifact = made(way, checkpoint, shown, REAL_WORK, others)
        yield {**facts_of(way, artifact), "seconds_a_slice": seconds_a_slice(artifact, way.format, 448, 1, 3)}
        shutil.rmtree(artifact)


def record(name: str, rows: list[dict[str, Any]]) -> None:
    """Keep the rows with where they come from."""
    facts = provenance("benchmarks.vision")
    facts["versions"]["onnxruntime"] = version("onnxruntime")
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-size", action="store_true")
    at_true_widths = parser.parse_args().real_size
    shutil.rmtree(REAL_WORK if at_true_widths else WORK, ignore_errors=True)
    (REAL_WORK if at_true_widths else WORK).mkdir(parents=True)
    if at_true_widths:
        record("vision-real-size", list(real_size()))
    else:
        record("vision", list(reference()))
        components()
