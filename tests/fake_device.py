"""Calibrate on the CPU and on another device in a separate process, and print the results of both as JSON.

    python -m tests.fake_device LIBRARY SET OUT CHECKPOINT...

The device is a GPU if there is one, else the device of LIBRARY: it computes on the CPU, and operations that mix its
tensors with CPU tensors fail. The results of every checkpoint have the name of its folder.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.backend_registration import rename_privateuse1_backend

from mcpmq.calibrate.added_statistics import add_from_all
from mcpmq.calibrate.forward import encode_samples
from mcpmq.calibrate.imatrix import write_imatrix
from mcpmq.calibrate.observers import HessianObserver, HoldOut, TokenModalities
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.execution.chunked_matmul import serial_map
from mcpmq.execution.device import CPU
from mcpmq.execution.torch_model import to_float
from mcpmq.mixed_precision.layer_error import PROBE_SCHEME, quantization_errors
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.rounding.stats import Drift
from mcpmq.runners.torch import open_runner
from mcpmq.system.progress import silent
from tests.calibrate.test_exchange import AddingThreadExchange, Board
from tests.loss_tools import answer_losses
from tests.smoothing_tools import few_exponents

SOURCE, DEVICE_NAME = Path(__file__).parent / "fake_device.cpp", "fake"
# One scheme of every kind of grid, with all methods, smoothing and method selection.
WEIGHTS = {
    "language.layers.*": "int4-g32",
    "language.layers.*.mlp.down": "q4_k",
    "vision.layers.*": "int8-row",
    "vision.layers.*.mlp.down": "iq4_nl",
    "projector.*": "int8-g32-asym",
    "head": "int8-g32",
}
RECIPE = Recipe.model_validate({"name": "everything", "method": "auto", "smooth": "awq", "weights": WEIGHTS})
RECIPES = {"minicpm": RECIPE, "qwen": RECIPE.model_copy(update={"targets": "model"})}  # by the name of the checkpoint


def build_library(compiler: str, folder: Path) -> Path:
    """Compile the device against the installed torch, unless the folder has its library."""
    key = sha256(f"{torch.__version__} {torch.__file__} {SOURCE.read_text()}".encode()).hexdigest()
    library = folder / f"fake_device-{key[:16]}.so"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        compiled = folder / f"{library.name}.{os.getpid()}"
        _compile(compiler, compiled)
        compiled.replace(library)
    return library


def _compile(compiler: str, out: Path) -> None:
    folder = Path(torch.__file__).parent
    headers = [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    command = [compiler, "-std=c++20", "-shared", "-fPIC", *headers, str(SOURCE), "-o", str(out), *libraries]
    subprocess.run(command, check=True)


def open_device(library: Path) -> torch.device:
    """Return the device after loading its library."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    rename_privateuse1_backend(DEVICE_NAME)
    torch.ops.load_library(library)
    torch._register_device_module(DEVICE_NAME, ModuleType(DEVICE_NAME))
    return torch.device(DEVICE_NAME, 0)


def calibrate_on(plan: Plan, samples: SampleSet, device: torch.device, out: Path) -> dict[str, Any]:
    """Quantize, write an imatrix and measure errors on one device.

    The result has the recorded devices, the error of every block with every candidate, the selected method, smoothing
    and norm of the change of every weight, its error share, losses of the original, and statistics of two processes.
    """
    # Products are not chunked, so that both devices multiply and add in the same order if their kernels agree. The
    # searches have one candidate, because the fake device takes much time for every operation, and because devices with
    # other kernels select among candidates of nearly equal error by chance.
    with (
        few_exponents(0.5),
        patch("mcpmq.rounding.shrinkage.SHRINKAGES", (0.1,)),
        patch.object(import_module("mcpmq.quantize"), "resolve_devices", lambda *_: (device,)),
        patch("mcpmq.calibrate.imatrix.resolve_device", lambda *_: device),
        patch("mcpmq.calibrate.forward.chunk_linears"),
        sdpa_kernel(SDPBackend.MATH),
    ):
        quantized = quantize(plan, out / "codes", samples)
        imatrix = write_imatrix(plan.checkpoint, samples, out / "imatrix")
        matrices = [tensor.name for tensor in plan.tensors if tensor.scheme and tensor.spec.role == "matrix"]
        schemes = {name: [PROBE_SCHEME] for name in matrices}
        errors = quantization_errors(plan.checkpoint, schemes, "gptq", samples.samples, silent, device)
    return {
        "devices": [quantized.artifact.manifest.device, imatrix.manifest.device],
        "block_errors": quantized.artifact.manifest.held_out_errors,
        "methods": {name: _method(quantized, name) for name in matrices},
        "changes": {name: _change(plan.checkpoint, quantized, name) for name in matrices},
        "error_shares": {name: error.share for name, error in errors.items()},
        "losses": _losses_of_original(plan.checkpoint, samples, device),
        "added": _add_statistics(device),
    }


def _losses_of_original(checkpoint: Checkpoint, samples: SampleSet, device: torch.device) -> list[list[float]]:
    """Return the losses of all answer tokens of some samples in the original model."""
    inputs = encode_samples(checkpoint.family.open_processor(checkpoint.path), samples.samples[:3], silent)
    with patch("mcpmq.runners.torch.resolve_device", lambda *_: device):
        return [losses.tolist() for losses in answer_losses(open_runner(checkpoint.path, 1), inputs)]


def _add_statistics(device: torch.device) -> list[list[float]]:
    """Return the sums of a Hessian and of the products of a drift, and the held-out inputs, of two processes.

    They are threads here; the second one has no samples.
    """
    board = Board.of_size(2)
    modalities = TokenModalities(lambda count: torch.zeros(count, dtype=torch.uint8), torch.ones(4))
    hold_out = HoldOut(lambda: True, in_gram=True)
    create = partial(HessianObserver.create, modalities, serial_map, hold_out, device)

    def collect(exchange: AddingThreadExchange) -> dict[str, Any]:
        def observe(new_observer: Any, *, observers: dict[str, Any]) -> dict[str, Any]:
            if exchange.rank:
                return {}
            observers["a"] = new_observer(3, Drift(True, torch.empty(3, 2, device=device)))
            observers["a"].update(torch.arange(6.0).reshape(2, 3).to(device), torch.ones(2, 2).to(device))
            return {"a": (observers["a"].result(),)}

        return add_from_all(exchange, create, observe)

    with ThreadPoolExecutor(2) as pool:
        found, _ = pool.map(collect, [AddingThreadExchange(rank, board, device=device) for rank in range(2)])
    [stats] = found["a"]
    return [one.flatten().tolist() for one in (stats.gram, stats.drift.products, stats.held_out_inputs)]


def _method(quantized: QuantizedModel, name: str) -> list[Any]:
    record = quantized.records[name]
    return [record.method, record.smoothing_exponent]


def _change(checkpoint: Checkpoint, quantized: QuantizedModel, name: str) -> float:
    spec = quantized.specs[name]
    change: Tensor = to_float(quantized.load(name), spec) - to_float(checkpoint.load(spec), spec)
    return float(change.norm())


if __name__ == "__main__":
    library, samples, out, *checkpoints = map(Path, sys.argv[1:])
    devices, results = {"cpu": CPU, "device": open_device(library)}, {}
    for checkpoint in checkpoints:
        plan, folder = make_plan(Checkpoint.open(checkpoint), RECIPES[checkpoint.name]), out / checkpoint.name
        results[checkpoint.name] = {
            name: calibrate_on(plan, SampleSet.open(samples), device, folder / name) for name, device in devices.items()
        }
    sys.stdout.write(json.dumps(results))
