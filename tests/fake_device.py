"""Calibrates on another device than the processor, in a process of its own, and tells what came of it on both.

    python -m tests.fake_device LIBRARY SET CHECKPOINT OUT

The device is a graphics processor where there is one. Elsewhere it is the processor under another name, from LIBRARY,
on which nothing is faster, but everything that was left on the wrong side fails.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mcpmq.calibrate.imatrix import imatrix
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.execution.device import CPU
from mcpmq.execution.torch_model import floats_of
from mcpmq.mixed_precision.layer_error import TRIED, damages
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.system.progress import silent

SOURCE, NAME = Path(__file__).parent / "fake_device.cpp", "second"
# Every grid that is reached in a way of its own, every rounder, scales that move, and blocks that choose.
WEIGHTS = {
    "language.layers.*": "int4-g32",
    "language.layers.*.mlp.down": "q4_k",
    "vision.layers.*": "iq4_nl",
    "projector.*": "int8-g32-asym",
    "head": "int8-g32",
}
RECIPE = Recipe.model_validate({"name": "everything", "round": "best", "smooth": "awq", "weights": WEIGHTS})


def compile_library(compiler: str, out: Path) -> None:
    """Build the device for the torch that is installed."""
    folder = Path(torch.__file__).parent
    headers = [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu"]
    command = [compiler, "-std=c++20", "-shared", "-fPIC", *headers, str(SOURCE), "-o", str(out), *libraries]
    subprocess.run(command, check=True)


def open_device(library: Path) -> torch.device:
    """The device, ready to be computed on."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(library)
    torch._register_device_module(NAME, ModuleType(NAME))
    return torch.device(NAME, 0)


def told(plan: Plan, samples: CalibrationSet, device: torch.device, out: Path) -> dict[str, Any]:
    """What one device makes of a plan: the errors of every block as it was rounded in every way, how far the weights
    that were chosen are from the original ones, importance by column, and what damage each weight does."""
    # So that both multiply and add in the same order, nothing is shared out; another device's own kernels may still.
    choose, alone = patch("mcpmq.quantize.choose", lambda _: device), patch("mcpmq.calibrate.forward.share_linears")
    with choose, patch("mcpmq.calibrate.imatrix.choose", lambda _: device), alone, sdpa_kernel(SDPBackend.MATH):
        made = quantize(plan, out / "codes", samples)
        importance = imatrix(plan.checkpoint, samples, out / "imatrix")
        asked = {step.name: [TRIED] for step in plan.steps if step.scheme and step.spec.role == "matrix"}
        damage = damages(plan.checkpoint, asked, "gptq", samples.samples, silent, device)
    return {
        "devices": [made.artifact.manifest.device, importance.manifest.device],
        "errors": made.artifact.manifest.held_out_errors,
        "changes": {name: _change(plan.checkpoint, made, name) for name in asked},
        "damage": {name: one.share for name, one in damage.items()},
    }


def _change(checkpoint: Checkpoint, made: Quantized, name: str) -> float:
    spec = made.specs[name]
    change: Tensor = floats_of(made.load(name), spec) - floats_of(checkpoint.load(spec), spec)
    return float(change.norm())


if __name__ == "__main__":
    library, samples, checkpoint, out = map(Path, sys.argv[1:])
    plan = make_plan(Checkpoint.open(checkpoint), RECIPE)
    devices = {"here": CPU, "there": open_device(library)}
    found = {name: told(plan, CalibrationSet.open(samples), at, out / name) for name, at in devices.items()}
    sys.stdout.write(json.dumps(found))
