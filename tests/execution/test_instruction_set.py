"""The instruction set of CPU kernels, and the codes that depend on it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from mcpmq.execution.instruction_set import instruction_set
from mcpmq.system.torch_threads import torch_threads
from tests.kill_points import read_files

QUANTIZE = """
import sys
from pathlib import Path
from mcpmq.checkpoint import Checkpoint
from mcpmq.execution.instruction_set import instruction_set
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
quantize(make_plan(Checkpoint.open(sys.argv[1]), Recipe.load("phone-int4")), Path(sys.argv[2]))
print(instruction_set())
"""


def _quantize(checkpoint: Path, out: Path, **variables: str) -> str:
    command = [sys.executable, "-c", QUANTIZE, str(checkpoint), str(out)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout


def test_the_value_does_not_depend_on_threads() -> None:
    """It has the name that torch gives, and eight digits of a hash."""
    value = instruction_set()
    with torch_threads(3):
        assert instruction_set() == value

    assert re.fullmatch(rf"{torch.backends.cpu.get_cpu_capability()} [0-9a-f]{{8}}", value)


def test_rounding_to_nearest_gives_equal_bytes_on_every_instruction_set(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Other kernels are another value; the codes of phone-int4 do not depend on them."""
    first = _quantize(tiny_checkpoint, tmp_path / "first")
    for library, variables in {"aten": {"ATEN_CPU_CAPABILITY": "default"}, "mkl": {"MKL_CBWR": "COMPATIBLE"}}.items():
        assert first.split()[1] != _quantize(tiny_checkpoint, tmp_path / library, **variables).split()[1]
        assert read_files(tmp_path / "first") == read_files(tmp_path / library)
