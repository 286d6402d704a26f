"""A quantization with a memory limit stays below it, with the bytes of a run without a limit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import DatasetError, OutputError
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from tests.commands import Command

RECIPE = Recipe.model_validate(
    {"name": "calibrated", "method": "gptq", "weights": {"*": "int8-g32", "language.*": "int4-g32"}}
)


@pytest.fixture(scope="module")
def plan(small_checkpoint: Path) -> Plan:
    """A plan of the small checkpoint with GPTQ."""
    return make_plan(Checkpoint.open(small_checkpoint), RECIPE)


def write_texts(folder: Path, samples: int, words: int) -> Path:
    """Write samples of equal length."""
    folder.mkdir()
    lines = [{"id": str(number), "prompt": "sign " * words, "answer": f"{number}."} for number in range(samples)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_the_peak_of_a_process_is_below_its_limit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With all hidden states in memory it would be exceeded: they are larger than the tolerance of the limit."""
    short, long = write_texts(tmp_path / "short", 2, 5), write_texts(tmp_path / "long", 60, 250)
    words = [sys.executable, "-m", "tests.calibrate.limited_run", tiny_checkpoint, short, long, tmp_path]

    printed = subprocess.run(list(map(str, words)), capture_output=True, check=True, text=True).stdout

    found = json.loads(printed)
    assert found["peak"] <= found["limit"]
    assert found["spared"] > 15e6


def test_a_limit_that_is_too_small_is_an_error(plan: Plan, mixed_set: SampleSet, tmp_path: Path) -> None:
    """Rounding is checked by the plan alone, calibration with the memory that is in use; nothing is written."""
    with pytest.raises(OutputError, match=r"quantizing needs about 2\d\d MB of memory, the limit is 200 MB"):
        quantize(plan, tmp_path / "out", mixed_set, memory_limit=200_000_000)
    with pytest.raises(DatasetError, match="within the limit of 300 MB") as caught:
        quantize(plan, tmp_path / "out", mixed_set, memory_limit=300_000_000)
    assert caught.value.hint == "raise `--memory-limit`"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["quantize", "convert"])
def test_commands_have_the_limit(
    command: str, small_checkpoint: Path, mixed_set: SampleSet, tmp_path: Path, mcpmq: Command
) -> None:
    """The option is a size; a run that needs more ends with the error."""
    options = ["--recipe", "calibrated-int4", "--calibration", mixed_set.path, "--memory-limit", "0.2GB"]
    formats = ["--format", "gguf"] if command == "convert" else []

    found = mcpmq(command, small_checkpoint, tmp_path / "out", *options, *formats)

    assert found.exit_code == 1
    assert "the limit is 200 MB" in found.stderr
