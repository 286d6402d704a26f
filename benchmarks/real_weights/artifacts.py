"""Quantize every variant once: artifacts stay in the build folder, with their cost, until the sources change.

An earlier commit of mcpmq is extracted from the repository and run from there. Artifacts of the present sources are
made again when a file of `SOURCES` changed.
"""

import ast
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.commands import ROOT
from benchmarks.peers.artifacts import HERE as PEERS
from benchmarks.peers.artifacts import Cost, install_tool, tool_python
from benchmarks.peers.decoders import read_peer_decoder
from benchmarks.real_weights import checkpoint, smollm2
from benchmarks.real_weights.inputs import CHECKPOINTS, LLAMA, calibration_set
from benchmarks.real_weights.measure import measurement_file
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.variants import Variant
from mcpmq.recipe import to_toml

VARIANT_FOLDERS, COMMITS = WORK / "variants", WORK / "commits"
SOURCES = ("calibrate", "grids", "rounding")  # folders of mcpmq that determine the codes
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}


def sources_hash(root: Path = ROOT) -> str:
    """Return a hash of the modules that determine the codes, without their comments and docstrings."""
    files = sorted(file for folder in SOURCES for file in (root / "mcpmq" / folder).rglob("*.py"))
    code = "".join(_code(file.read_text()) for file in files)
    return hashlib.sha256(code.encode()).hexdigest()[:8]


def _code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def variant_folder(variant: Variant) -> Path:
    """Return the folder of a variant; that of the present sources has their hash in its name."""
    fixed = variant.commit or (variant.tool != "mcpmq")
    return VARIANT_FOLDERS / (variant.name if fixed else f"{variant.name}-{sources_hash()}")


def make_artifacts(variant: Variant) -> list[Path]:
    """Quantize and export a variant unless that is done, and return the artifacts in the order of its formats.

    Raises:
        SystemExit: a command failed; the message names its log.
    """
    folder, cost = variant_folder(variant), variant_folder(variant) / "cost.json"
    if not cost.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        measured = _quantize(variant, folder)
        for name in variant.formats:
            _mcpmq(folder, "export", folder / "quantized", folder / name, "--format", name)
        shutil.rmtree(folder / "quantized")
        cost.write_text(json.dumps(asdict(measured)))
    return [folder / name for name in variant.formats]


def is_finished(variant: Variant, test: str) -> bool:
    """Return True if all artifacts of a variant were measured on a test set."""
    folder = variant_folder(variant)
    files = [folder / "cost.json", *(measurement_file(folder / name, test) for name in variant.formats)]
    return all(file.is_file() for file in files)


def tool_versions(tools: Iterable[str]) -> dict[str, str]:
    """Return the pinned versions of other tools, by the name of their package."""
    lines = [(tool, line) for tool in tools for line in (PEERS / "tools" / f"{tool}.txt").read_text().splitlines()]
    pins = [line.split("==") for tool, line in lines if line.lower().startswith(f"{tool}==")]
    return dict(sorted(pins))


def quantization_cost(variant: Variant) -> Cost:
    """Return the cost of the process that quantized a variant."""
    return Cost(**json.loads((variant_folder(variant) / "cost.json").read_text()))


def _quantize(variant: Variant, folder: Path) -> Cost:
    if variant.tool != "mcpmq":
        return _quantize_with_peer(variant, folder)
    recipe = folder / "recipe.toml"
    fields = {"name": variant.name, "method": variant.method, "smooth": variant.smooth, "weights": variant.weights}
    recipe.write_text(to_toml(fields))
    calibration = ["--calibration", calibration_set(variant.samples)] if variant.samples else []
    words = ["quantize", CHECKPOINTS / variant.model, folder / "quantized", "--recipe", recipe, *calibration]
    return _mcpmq(folder, *words, source=commit_folder(variant.commit))


def _quantize_with_peer(variant: Variant, folder: Path) -> Cost:
    """Quantize with another tool; its dequantized weights are exported as float32."""
    install_tool(variant.tool)
    script, out = PEERS / "tools" / f"with_{variant.tool}.py", folder / "peer"
    words = [tool_python(variant.tool), "-P", script, LLAMA, out, json.dumps(variant.options)]
    cost = _run(words, folder / "peer.log", folder)
    decoder = read_peer_decoder(next(out.rglob("config.json")).parent)
    weights = load_file(LLAMA / "model.safetensors") | dict(decoder.weights)
    checkpoint.write_qwen2vl(weights, smollm2.open_gguf(), folder / "checkpoint")
    _mcpmq(folder, "quantize", folder / "checkpoint", folder / "quantized", "--recipe", "full")
    for name in ("peer", "checkpoint"):
        shutil.rmtree(folder / name)
    return cost


def commit_folder(commit: str) -> Path:
    """Return a folder with the mcpmq of a commit; empty: the present one."""
    folder = COMMITS / commit if commit else ROOT
    if not folder.is_dir():
        command = ["git", "archive", commit, "mcpmq"]
        archive = subprocess.run(command, capture_output=True, cwd=ROOT, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
    return folder


def run_python(words: Sequence[object], log: Path, source: Path) -> Cost:
    """Run Python with the mcpmq in the folder `source`, and the benchmarks of this repository.

    Raises:
        SystemExit: the command failed; the message names its log.
    """
    return _run([sys.executable, *words], log, source)


def _mcpmq(folder: Path, *words: object, source: Path = ROOT) -> Cost:
    return run_python(["-m", "mcpmq", "--quiet", *words], folder / f"{words[0]}.log", source)


def _run(words: Sequence[object], log: Path, source: Path) -> Cost:
    start = time.monotonic()
    with log.open("w") as file:
        variables = {**os.environ, **THREADS, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}"}
        process = subprocess.Popen(list(map(str, words)), cwd=source, env=variables, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed, see {log}")
    return Cost(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
