"""Folders, `mcpmq` commands in child processes, and results with their provenance, for the benchmark scripts."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.process_cost import run_measured
from mcpmq.report import Report
from mcpmq.system.environment import describe_machine

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results"
REFERENCE, STARTER, HELDOUT = (ROOT / "calibration" / name for name in ("reference", "starter", "heldout"))
AUDIO_REFERENCE = ROOT / "calibration" / "audio_reference"
SPEECH_STARTER, SPEECH_HELDOUT = (ROOT / "calibration" / "speech_sets" / name for name in ("starter", "heldout"))
CONTROLS = ROOT / "benchmarks" / "recipes"  # recipes to compare with, which are not built in
PACKAGES = ("mcpmq", "torch", "numpy", "gguf", "xllamacpp", "onnx-ir")


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The cost of one command in a process of its own."""

    command: str
    seconds: float
    peak_rss_bytes: int
    written_bytes: int


def run_command(*arguments: object, out: Path) -> CommandResult:
    """Run `mcpmq` with these arguments; `out` is the folder whose files are counted as written.

    Raises:
        SystemExit: the command failed.
    """
    words = list(map(str, arguments))
    command = [sys.executable, "-m", "mcpmq", "--quiet", *words]
    status, cost = run_measured(command, ROOT, output=subprocess.DEVNULL)
    if status:
        raise SystemExit(f"mcpmq {' '.join(words)} failed")
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    relative = [os.path.relpath(word, ROOT) if word.startswith("/") else word for word in words]
    return CommandResult("mcpmq " + " ".join(relative), round(cost.seconds, 2), cost.peak_rss_bytes, written)


def recipe_argument(name: str) -> str:
    """Return the argument of `--recipe`: the file of a control, else the name of a built-in recipe."""
    control = CONTROLS / f"{name}.toml"
    return str(control) if control.is_file() else name


def evaluate(artifacts: Iterable[Path], out: Path, *options: str) -> Report:
    """Evaluate artifacts against the reference checkpoint on the held-out set."""
    sets = ("--against", REFERENCE, "--eval-set", HELDOUT)
    run_command("evaluate", *artifacts, *sets, "--out", out, *options, out=out)
    return Report.load(out)


def commit() -> str:
    """Return the abbreviated hash of the current commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()


def provenance(module: str, *packages: str) -> dict[str, Any]:
    """Return the command, commit, machine and versions to record with a result."""
    return {
        "command": f"python -m {module} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "machine": describe_machine(),
        "versions": {package: version(package) for package in (*PACKAGES, *packages)},
    }


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Write a result to benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
