"""Converts the reference checkpoint every way, measures it, and writes what was found to benchmarks/results.

python -m benchmarks.run                        the reference: quality, sizes, memory, seconds
python -m benchmarks.run --real-size 28         a random checkpoint of MiniCPM-V 2.6's size: memory and seconds alone
python -m benchmarks.run --real-size 28 --calibrated    the same by what it sees of a fifth of the starter set
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.real_size import write as write_real_size
from mcpmq.report import Report
from mcpmq.system.environment import describe_machine

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "benchmarks" / "reference"
REAL_WORK = WORK.parent / "real-size"
RESULTS = ROOT / "benchmarks" / "results"
REFERENCE, STARTER, HELDOUT = (ROOT / "calibration" / name for name in ("reference", "starter", "heldout"))
WAYS = {
    "phone-int4": ("gguf", "onnx"),
    "phone-int8": ("gguf", "onnx"),
    "quality-int4": ("gguf",),
    "full": ("gguf", "onnx"),
    "calibrated-int4": ("gguf", "onnx"),
    "calibrated-quality-int4": ("gguf",),
    "calibrated-language-int4": ("gptq", "awq", "compressed-tensors"),
    "language-nf4": ("bnb",),
    "language-int8": ("bnb",),
}
PACKAGES = ("mcpmq", "torch", "numpy", "gguf", "xllamacpp", "onnx-ir")


@dataclass(frozen=True, slots=True)
class Command:
    """One command in a process of its own."""

    command: str
    seconds: float
    peak_resident_bytes: int
    written_bytes: int


def timed(*arguments: object, out: Path) -> Command:
    """Run `mcpmq` and wait for it."""
    words = list(map(str, arguments))
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "mcpmq", "--quiet", *words], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mcpmq {' '.join(words)} failed")
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    relative = [os.path.relpath(word, ROOT) if word.startswith("/") else word for word in words]
    seconds, peak = round(time.monotonic() - start, 2), usage.ru_maxrss * 1024
    return Command("mcpmq " + " ".join(relative), seconds, peak, written)


def conversions(checkpoint: Path, work: Path, ways: dict[str, tuple[str, ...]]) -> Iterator[Command]:
    """Quantize by every recipe, and export to every format that holds it."""
    for recipe, formats in ways.items():
        codes = work / recipe / "quantized"
        seeing = ["--calibration", STARTER] if recipe.startswith("calibrated") else []
        yield timed("quantize", checkpoint, codes, "--recipe", recipe, *seeing, out=codes)
        for name in formats:
            yield timed("export", codes, work / recipe / name, "--format", name, out=work / recipe / name)


def provenance(module: str) -> dict[str, Any]:
    """The command, the commit, the machine and the versions that figures are kept with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {
        "command": f"python -m {module} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit.stdout.strip(),
        "machine": describe_machine(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def record(name: str, commands: list[Command]) -> None:
    """Keep the figures with where they come from."""
    facts = provenance("benchmarks.run") | {"commands": [asdict(command) for command in commands]}
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def measured(name: str, artifacts: list[Path], *options: str) -> None:
    """Evaluate artifacts on the held-out set and keep the report."""
    out = WORK / name
    timed(
        "evaluate", *artifacts, "--against", REFERENCE, "--on", HELDOUT, "--out", out, "--no-cache", *options, out=out
    )
    (RESULTS / f"{name}.json").write_text(Report.load(out).model_dump_json() + "\n")


def reference() -> None:
    """The trained checkpoint: conversion, quality, and three controls."""
    record("conversion", list(conversions(REFERENCE, WORK, WAYS)))
    calibrated, nearest = ([WORK / name / form for form in WAYS[name]] for name in ("calibrated-int4", "phone-int4"))
    best = WORK / "calibrated-quality-int4" / "gguf"
    measured("reference", [*calibrated, WORK / "phone-int8" / "onnx", best])  # what `make demo` makes
    measured("calibrated", [*nearest, WORK / "quality-int4" / "gguf", best])
    measured("unquantized", [WORK / "full" / name for name in WAYS["full"]])
    measured("hugging-face", hugging_face())
    measured("engine-cuts", [WORK / "full" / "gguf"], "--engine-cuts")
    measured("shuffled", nearest[:1], "--shuffle-images")


def hugging_face() -> list[Path]:
    """Artifacts that transformers runs, or that are in its layouts."""
    packed = [WORK / "calibrated-language-int4" / name for name in ("gptq", "compressed-tensors")]
    return [*packed, WORK / "language-nf4" / "bnb", WORK / "language-int8" / "bnb"]


def real_size(layers: int) -> None:
    """Conversion at the published widths, where one matrix has a gigabyte."""
    checkpoint = REAL_WORK / "checkpoint"
    write_real_size(checkpoint, layers)
    ways = {
        "phone-int4": ("gguf", "onnx"),
        "quality-int4": ("gguf",),
        "language-int4": ("gptq", "awq", "compressed-tensors"),
        "language-nf4": ("bnb",),
    }
    record(f"real-size-{layers}", list(conversions(checkpoint, REAL_WORK, ways)))


def calibrated_real_size(layers: int) -> None:
    """Samples that pass at the published widths, where a Gram matrix has 1.4 gigabytes."""
    checkpoint, codes = REAL_WORK / "checkpoint", REAL_WORK / "calibrated-int4" / "quantized"
    write_real_size(checkpoint, layers)
    samples = part_of_starter(REAL_WORK / "samples")
    seeing = ("--recipe", "calibrated-int4", "--calibration", samples, "--device", "cpu")
    record(f"real-size-{layers}-calibrated", [timed("quantize", checkpoint, codes, *seeing, out=codes)])


def part_of_starter(folder: Path) -> Path:
    """Every fifth sample."""
    shutil.copytree(STARTER / "images", folder / "images")
    lines = (STARTER / "manifest.jsonl").read_text().splitlines()
    (folder / "manifest.jsonl").write_text("\n".join(lines[::5]) + "\n")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real-size", type=int, metavar="LAYERS")
    parser.add_argument("--calibrated", action="store_true", help="goes with --real-size")
    arguments = parser.parse_args()
    shutil.rmtree(REAL_WORK if arguments.real_size else WORK, ignore_errors=True)
    RESULTS.mkdir(exist_ok=True)
    at_true_size = calibrated_real_size if arguments.calibrated else real_size
    at_true_size(arguments.real_size) if arguments.real_size else reference()
