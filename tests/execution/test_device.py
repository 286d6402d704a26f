"""Devices are resolved by name, and calibration on another device gives the same results as on the CPU."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import DeviceError, OutputError
from mcpmq.execution.device import (
    CPU,
    MIN_GPU_NBYTES,
    available_nbytes,
    device_name,
    progress_label,
    resolve_device,
    resolve_devices,
)
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.system.progress import Item
from tests.fake_device import DEVICE_NAME, build_library
from tests.tiny import SMALL_CONFIG, build_checkpoint
from tests.tiny_families import TINY_FAMILIES

ROOT = Path(__file__).parents[2]
COMPILER, CUDA = shutil.which("c++") or shutil.which("g++"), torch.cuda.is_available()


def test_the_default_device_is_a_gpu_if_there_is_one() -> None:
    """A name selects a device; without a name it is the GPU, else the CPU, which has no name in manifests."""
    assert resolve_device("cpu") == CPU
    assert device_name(CPU) is None
    assert (resolve_device().type == "cuda") == CUDA
    assert available_nbytes(CPU) > 0


def test_small_checkpoints_are_calibrated_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name; a name selects the GPU for a checkpoint of any size."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    assert resolve_device(None, MIN_GPU_NBYTES) == torch.device("cuda:0")
    assert resolve_device(None, MIN_GPU_NBYTES - 1) == CPU
    assert resolve_device("cuda", 1) == torch.device("cuda:0")
    assert resolve_device("cpu", MIN_GPU_NBYTES) == CPU


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda one: ["H100", "H200"][one.index])


@pytest.mark.usefixtures("two_gpus")
def test_several_gpus_share_the_samples_of_a_calibration() -> None:
    """Names are separated by commas, or select all GPUs; without a name and with one it is one device."""
    both = (torch.device("cuda:0"), torch.device("cuda:1"))
    assert resolve_devices("cuda:0,cuda:1") == both
    assert resolve_devices("cuda:all") == both
    assert resolve_devices("cuda:1,cuda") == both[::-1]
    assert resolve_devices() == (both[0],)
    assert resolve_devices("cuda:1") == (both[1],)
    assert resolve_devices(None, 1) == (CPU,)
    assert device_name(*both) == "1 x H100, 1 x H200"
    assert device_name(both[0], both[0]) == "2 x H100"
    assert device_name(both[1]) == "H200"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cuda:0,cuda", "`cuda:0,cuda` are not different GPUs"),
        ("cuda,cpu", "`cuda,cpu` are not different GPUs"),
        ("cuda:0,cuda:2", "`cuda:2` is not available: torch .* finds 2 GPUs"),
        ("cuda:0,", "`` is not a device name"),
    ],
)
def test_invalid_names_of_several_gpus_are_an_error(names: str, message: str) -> None:
    """The error has the name, the hint valid ones."""
    with pytest.raises(DeviceError, match=message):
        resolve_devices(names)


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_all_gpus_of_a_machine_without_one_are_an_error() -> None:
    """The CPU is not used instead."""
    with pytest.raises(DeviceError, match="finds 0 GPUs"):
        resolve_devices("cuda:all")


def test_progress_labels_name_devices_other_than_the_cpu() -> None:
    """The label has the device name, because a GPU may be the default."""
    assert progress_label("calibrating", CPU) == "calibrating"
    assert progress_label("calibrating", torch.device("meta")) == "calibrating on meta"
    assert progress_label("calibrating", torch.device("meta"), 4) == "calibrating on 4 x meta"


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:0", "", ":1"])
def test_an_invalid_device_name_is_an_error(name: str) -> None:
    """The error has the name, the hint the valid names."""
    with pytest.raises(DeviceError, match=f"`{name}` is not a device name"):
        resolve_device(name)


def test_an_unavailable_gpu_is_an_error_before_any_work(
    small_checkpoint: Path, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """The error has the number of GPUs; nothing is written."""
    plan = make_plan(Checkpoint.open(small_checkpoint), Recipe.load("calibrated-int4"))

    with pytest.raises(DeviceError, match=rf"`cuda:99` is not available: torch .* {torch.cuda.device_count()} GPUs"):
        quantize(plan, tmp_path / "out", mixed_set, device="cuda:99")

    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def library() -> Path:
    """The library of the fake device, or an unused path if there is a GPU."""
    if CUDA:
        return ROOT / "unused"
    if not COMPILER:
        pytest.skip("no GPU, and no compiler for the fake device")
    return build_library(COMPILER, ROOT / "build")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the outputs of the calibrations."""
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture(scope="module")
def results(library: Path, mixed_set: SampleSet, calibrated: Path) -> dict[str, Any]:
    """The results of MiniCPM-V and Qwen2.5-VL with few layers on both devices."""
    vision = {**SMALL_CONFIG["vision_config"], "num_hidden_layers": 1}
    minicpm = build_checkpoint(
        calibrated / "minicpm", {**SMALL_CONFIG, "num_hidden_layers": 1, "vision_config": vision}
    )
    [family] = [one for one in TINY_FAMILIES if one.name == "qwen2.5-vl"]
    vision = {**family.config["vision_config"], "depth": 2, "fullatt_block_indexes": [1]}
    qwen = replace(family, config={**family.config, "num_hidden_layers": 2, "vision_config": vision})
    arguments = library, mixed_set.path, calibrated, minicpm, qwen.build(calibrated / "qwen")
    command = [sys.executable, "-m", "tests.fake_device", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


def test_another_device_gives_the_same_results(results: dict[str, Any]) -> None:
    """No tensor is on the wrong device, error shares agree closely, and quantization errors are about as large."""
    cpu, device = results["minicpm"]["cpu"], results["minicpm"]["device"]
    assert cpu["devices"] == [None, None]
    assert all(device["devices"])
    assert device["error_shares"] == pytest.approx(cpu["error_shares"], abs=1e-5)
    for block, errors in cpu["block_errors"].items():
        assert device["block_errors"][block] == pytest.approx(errors, rel=0.3)
    assert device["changes"] == pytest.approx(cpu["changes"], rel=0.5)
    gram, products = [9.0, 12.0, 15.0, 12.0, 17.0, 22.0, 15.0, 22.0, 29.0], [3.0, 3.0, 5.0, 5.0, 7.0, 7.0]
    assert device["added"] == cpu["added"] == [gram, products, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]
    for losses, expected in zip(device["losses"], cpu["losses"], strict=True):
        assert losses == pytest.approx(expected, abs=1e-4)


@pytest.mark.skipif(CUDA, reason="adds in another order than the CPU")
def test_a_device_with_the_kernels_of_the_cpu_writes_the_same_codes(results: dict[str, Any], calibrated: Path) -> None:
    """With equal kernels, results and codes are equal in every bit; evaluations use other kernels for attention."""
    cpu, device = (calibrated / "qwen" / one / "codes" / "blocks" for one in ("cpu", "device"))

    expected = {**results["qwen"]["cpu"], "devices": [f"{DEVICE_NAME}:0"] * 2}
    assert results["qwen"]["device"] == expected | {"losses": results["qwen"]["device"]["losses"]}
    assert list(cpu.iterdir())
    for codes in cpu.iterdir():
        assert codes.read_bytes() == (device / codes.name).read_bytes()


def test_a_finished_run_of_another_device_is_reused(
    small_checkpoint: Path, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has no device for the CPU, and a finished artifact is not quantized again on another device."""
    plan = make_plan(Checkpoint.open(small_checkpoint), Recipe.load("calibrated-int4"))
    quantized = quantize(plan, tmp_path / "out", mixed_set, device="cpu")
    assert "device" not in json.loads((quantized.path / "mcpmq.json").read_text())

    monkeypatch.setattr(import_module("mcpmq.quantize"), "device_name", lambda _: "a GPU")
    assert quantize(plan, tmp_path / "out", mixed_set, device="cpu").artifact == Artifact.open(tmp_path / "out")


def test_an_interrupted_run_does_not_resume_on_another_device(
    small_checkpoint: Path, mixed_set: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device is an error, because its blocks would be mixed with those of the first; the same one resumes."""

    def interrupting(items: Sequence[Item], label: str) -> Iterable[Item]:
        if label == "calibrating":
            items = items[:3]
        yield from items
        if label == "calibrating":
            raise KeyboardInterrupt

    plan = make_plan(Checkpoint.open(small_checkpoint), Recipe.load("calibrated-int4"))
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "out", mixed_set, interrupting, device="cpu")

    with monkeypatch.context() as patched:
        patched.setattr(import_module("mcpmq.quantize"), "device_name", lambda _: "a GPU")
        with pytest.raises(OutputError, match="of another device"):
            quantize(plan, tmp_path / "out", mixed_set, device="cpu")

    assert quantize(plan, tmp_path / "out", mixed_set, device="cpu").artifact.manifest.device is None
