"""Quantize every variant once: artifacts stay in the build folder, with their cost, until the sources change.

An earlier commit of mcpmq is extracted from the repository and run from there. Artifacts of the present sources are
made again when a file of `SOURCES` changed.
"""

import ast
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.commands import ROOT
from benchmarks.commands import commit as present_commit
from benchmarks.peers.artifacts import HERE as PEERS
from benchmarks.peers.artifacts import install_tool, tool_python
from benchmarks.peers.decoders import read_peer_decoder
from benchmarks.process_cost import Cost, run_measured
from benchmarks.real_weights import checkpoint, ik_llama, smollm2
from benchmarks.real_weights.inputs import CHECKPOINTS, LLAMA, calibration_set
from benchmarks.real_weights.llama_quantize import cropped
from benchmarks.real_weights.packages import WORK
from benchmarks.real_weights.variants import Variant
from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.torch_model import to_float
from mcpmq.grids import quantize
from mcpmq.qtensor import GgmlTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import to_toml
from mcpmq.scheme import GgmlScheme

VARIANT_FOLDERS, COMMITS = WORK / "variants", WORK / "commits"
SOURCES = ("calibrate", "grids", "rounding")  # folders of mcpmq that determine the codes
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts that are recorded when a variant is quantized.

    commit: of the repository at that time; bits_per_weight: of the quantized matrices; rounded_to_nearest: the number
    of matrices that are rounded to nearest because GPTQ has a larger error on held-out inputs.
    """

    commit: str
    cost: Cost
    bits_per_weight: float
    matrices: int
    rounded_to_nearest: int = 0


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
    folder = variant_folder(variant)
    if not _facts_file(variant).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        facts = _quantize(variant, folder)
        for name in variant.formats:
            _mcpmq(folder, "export", folder / "quantized", folder / name, "--format", name)
        shutil.rmtree(folder / "quantized")
        _facts_file(variant).write_text(json.dumps(asdict(facts)))
    return [folder / name for name in variant.formats]


def read_facts(variant: Variant) -> Facts:
    """Return the facts of a quantized variant."""
    fields = json.loads(_facts_file(variant).read_text())
    return Facts(**{**fields, "cost": Cost(**fields["cost"])})


def _facts_file(variant: Variant) -> Path:
    return variant_folder(variant) / "facts.json"


def _quantize(variant: Variant, folder: Path) -> Facts:
    if variant.tool in ("llama-quantize", "ik-llama"):
        return _quantize_with_ggml(variant, folder)
    if variant.tool != "mcpmq":
        return _quantize_with_peer(variant, folder)
    samples = calibration_set(variant.samples, variant.calibration)
    calibration = ["--calibration", samples] if variant.samples else []
    recipe, out = write_recipe(variant, folder), folder / "quantized"
    words = ["quantize", CHECKPOINTS / variant.model, out, "--recipe", recipe, *calibration]
    facts = _model_facts(variant, _mcpmq(folder, *words, source=commit_folder(variant.commit)), out)
    if variant.as_float32:
        values = read_values(out, CHECKPOINTS / "smollm2")
        shutil.rmtree(out)
        _write_quantized(values, folder)
    return facts


def write_recipe(variant: Variant, folder: Path) -> Path:
    """Write the recipe of a variant; the scales of llama-quantize are those of ggml's search.

    Types that only ik_llama.cpp has are replaced by one of the same columns.
    """
    is_ggml = variant.tool in ("llama-quantize", "ik-llama")
    fields = {"name": variant.name, "method": "rtn" if is_ggml else variant.method, "smooth": variant.smooth}
    more = {"scale_search": "ggml"} if is_ggml else {}
    if variant.targets == "model":  # earlier commits have no other targets
        more["targets"] = "model"
    weights = dict.fromkeys(variant.weights, "q4_k") if variant.tool == "ik-llama" else variant.weights
    (folder / "recipe.toml").write_text(to_toml(fields | more | {"weights": weights}))
    return folder / "recipe.toml"


def read_values(quantized: Path, unpadded: Path) -> dict[str, Tensor]:
    """Return the values of the quantized matrices, float32 with the shapes of a checkpoint, by their names in it."""
    model, shapes = QuantizedModel.open(quantized), {spec.name: spec.shape for spec in Checkpoint.open(unpadded).specs}
    specs = [tensor.spec for tensor in model.tensors if tensor.is_quantized]
    return {spec.hub_name: cropped(to_float(model.load(spec.name), spec), shapes[spec.name]) for spec in specs}


def _model_facts(variant: Variant, cost: Cost, quantized: Path) -> Facts:
    model = QuantizedModel.open(quantized)
    matrices = [tensor.name for tensor in model.tensors if tensor.scheme and tensor.spec.role == "matrix"]
    records = [model.records[name] for name in matrices]
    weights = sum(math.prod(record.shape) for record in records)
    nearest = sum(record.method == "rtn" for record in records) if variant.method == "gptq" else 0
    bits = 8 * sum(record.nbytes for record in records) / weights
    return Facts(variant.commit or present_commit(), cost, bits, len(records), nearest)


def _quantize_with_ggml(variant: Variant, folder: Path) -> Facts:
    """Compute the blocks of llama-quantize with an importance matrix; their values are exported as float32."""
    blocks, [imatrix, cost] = folder / "blocks.safetensors", _write_imatrix(variant.samples)
    words = [CHECKPOINTS / variant.model, imatrix, write_recipe(variant, folder), blocks, folder / "bits.json"]
    script = ["-m", "benchmarks.real_weights.llama_quantize", CHECKPOINTS / "smollm2", *words]
    if variant.tool == "ik-llama":
        install_tool(ik_llama.ENVIRONMENT)
        script = ["-m", "benchmarks.real_weights.ik_llama", CHECKPOINTS / "smollm2", *words, variant.scheme]
    costs = cost, run_python(script, folder / "ggml.log", ROOT)
    _write_quantized(load_file(blocks), folder)
    blocks.unlink()
    return Facts(present_commit(), _sum_costs(costs), **json.loads((folder / "bits.json").read_text()))


def _write_imatrix(samples: int) -> tuple[Path, Cost]:
    """Write the importance matrix of a calibration set once; return its folder and cost."""
    folder = WORK / "imatrix" / f"{samples}-{sources_hash()}"
    if not (folder / "cost.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        calibration = ["--calibration", calibration_set(samples)]
        cost = _mcpmq(folder, "imatrix", CHECKPOINTS / "smollm2", folder / "imatrix", *calibration)
        (folder / "cost.json").write_text(json.dumps(asdict(cost)))
    return folder / "imatrix", Cost(**json.loads((folder / "cost.json").read_text()))


def _sum_costs(costs: Sequence[Cost]) -> Cost:
    seconds, processor_seconds = (sum(getattr(one, name) for one in costs) for name in ("seconds", "processor_seconds"))
    return Cost(seconds, processor_seconds, max(one.peak_rss_bytes for one in costs))


def _quantize_with_peer(variant: Variant, folder: Path) -> Facts:
    """Quantize with another tool; the values of its matrices are exported as float32."""
    install_tool(variant.tool)
    script, out = PEERS / "tools" / f"with_{variant.tool}.py", folder / "peer"
    words = [tool_python(variant.tool), "-P", script, LLAMA, out, json.dumps(variant.options)]
    cost = _run(words, folder / "peer.log", folder)
    written = next(out.rglob("config.json")).parent
    if "scheme" in variant.options:
        values, bits = read_changed(written, LLAMA), ggml_bits(variant.scheme)
    else:
        decoder = read_peer_decoder(written)
        values, bits = {name: decoder.weights[name] for name in decoder.quantized}, decoder.bits_per_weight
    _write_quantized(values, folder)
    shutil.rmtree(out)
    return Facts(present_commit(), cost, bits, len(values))


def read_changed(folder: Path, original: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint that differ from those of another."""
    before, after = (load_file(one / "model.safetensors") for one in (original, folder))
    return {name: weight for name, weight in after.items() if not torch.equal(weight, before[name])}


def ggml_bits(scheme: str) -> float:
    """Return the bits per weight of a type of ggml with blocks of 32."""
    block = quantize(torch.zeros(1, 32), GgmlScheme(scheme))
    assert isinstance(block, GgmlTensor)
    return 8 * block.blocks.nbytes / 32


def _write_quantized(values: Mapping[str, Tensor], folder: Path) -> None:
    """Write the model with other values of some matrices, by their names in the Llama checkpoint, as float32."""
    weights = {**load_file(LLAMA / "model.safetensors"), **values}
    checkpoint.write_qwen2vl(weights, smollm2.open_gguf(), folder / "checkpoint")
    _mcpmq(folder, "quantize", folder / "checkpoint", folder / "quantized", "--recipe", "full")
    shutil.rmtree(folder / "checkpoint")


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
    variables = {**os.environ, **THREADS, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}"}
    with log.open("w") as file:
        status, cost = run_measured(words, source, file, file, variables)
    if status:
        raise SystemExit(f"failed, see {log}")
    return cost
