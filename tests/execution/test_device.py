"""Calibration computes where it is told to: a device is there or refused, and what another computes is the same."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import CalibrationError, OutputError
from mcpmq.execution.device import CPU, available_nbytes, choose, name_of, told
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.system.progress import Item
from tests.fake_device import NAME, compile_library
from tests.tiny_families import TINY_FAMILIES

COMPILER, CUDA = shutil.which("c++") or shutil.which("g++"), torch.cuda.is_available()


def test_a_device_is_chosen_by_name_or_because_it_is_there() -> None:
    """Without a name a graphics processor where there is one, else the processor, of which nothing is recorded."""
    assert choose("cpu") == CPU
    assert name_of(CPU) is None
    assert (choose().type == "cuda") == CUDA
    assert available_nbytes(CPU) > 0


def test_work_elsewhere_than_on_the_processor_says_so() -> None:
    """A default that nobody asked for is seen while it works."""
    assert told("calibrating", CPU) == "calibrating"
    assert told("calibrating", torch.device("meta")) == "calibrating on meta"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:0", "", ":1"])
def test_a_name_that_says_nothing_is_refused(name: str) -> None:
    """With the names that do."""
    with pytest.raises(CalibrationError, match="is no device"):
        choose(name)


def test_a_graphics_processor_that_is_not_there_is_refused_before_anything_is_done(
    tiny_checkpoint: Path, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """With how many there are; nothing is written."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-int4"))

    with pytest.raises(CalibrationError, match=rf"no `cuda:99`: torch .* finds {torch.cuda.device_count()} graphics"):
        quantize(plan, tmp_path / "out", mixed_set, device="cuda:99")

    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The processor under another name, where there is no graphics processor to compare with."""
    out = tmp_path_factory.mktemp("second") / "second.so"
    if not CUDA:
        if not COMPILER:
            pytest.skip("no graphics processor, and no compiler to make a second device with")
        compile_library(COMPILER, out)
    return out


def _told(library: Path, samples: CalibrationSet, checkpoint: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.fake_device", *map(str, (library, samples.path, checkpoint, out))]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


def test_another_device_computes_the_same(
    library: Path, mixed_set: CalibrationSet, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Nothing is left on the wrong side; what samples show agrees to rounding, and rounding by it errs as much."""
    told = _told(library, mixed_set, tiny_checkpoint, tmp_path)

    here, there = told["here"], told["there"]
    assert here["devices"] == [None, None]
    assert all(there["devices"])
    assert there["damage"] == pytest.approx(here["damage"], abs=1e-5)
    for block, errors in here["errors"].items():
        assert there["errors"][block] == pytest.approx(errors, rel=0.3)
    assert there["changes"] == pytest.approx(here["changes"], rel=0.5)


@pytest.mark.skipif(CUDA, reason="adds in another order than the processor")
def test_the_processor_under_another_name_makes_the_same_codes(
    library: Path, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """Every bit: where kernels are the same, the way to the codes is the same on every device."""
    family = next(one for one in TINY_FAMILIES if one.name == "qwen2.5-vl")
    told = _told(library, mixed_set, family.build(tmp_path / "checkpoint"), tmp_path / "out")

    assert told["there"] == {**told["here"], "devices": [f"{NAME}:0"] * 2}
    for codes in (tmp_path / "out" / "here" / "codes" / "blocks").iterdir():
        assert codes.read_bytes() == (tmp_path / "out" / "there" / "codes" / "blocks" / codes.name).read_bytes()


def test_an_artifact_says_on_what_it_was_calibrated_and_a_finished_one_is_everybodys(
    tiny_checkpoint: Path, mixed_set: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor is not named; another device's codes are not made again."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-int4"))
    made = quantize(plan, tmp_path / "out", mixed_set, device="cpu")
    assert "device" not in json.loads((made.path / "mcpmq.json").read_text())

    monkeypatch.setattr("mcpmq.quantize.name_of", lambda _: "a graphics processor")
    assert quantize(plan, tmp_path / "out", mixed_set, device="cpu").artifact == Artifact.open(tmp_path / "out")


def test_a_run_that_stopped_on_one_device_does_not_go_on_on_another(
    tiny_checkpoint: Path, mixed_set: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of both would be mixed; on the same device it goes on."""

    def stopping(items: Sequence[Item], what: str) -> Iterable[Item]:
        if what == "calibrating":
            items = items[:3]
        yield from items
        if what == "calibrating":
            raise KeyboardInterrupt

    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-int4"))
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", mixed_set, stopping, device="cpu")

    with monkeypatch.context() as patched:
        patched.setattr("mcpmq.quantize.name_of", lambda _: "a graphics processor")
        with pytest.raises(OutputError, match="or device"):
            quantize(plan, tmp_path / "out", mixed_set, device="cpu")

    assert quantize(plan, tmp_path / "out", mixed_set, device="cpu").artifact.manifest.device is None
