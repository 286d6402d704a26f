"""Calibration in a process for each of several devices; without two GPUs, all of them are the CPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch

from mcpmq.calibrate.devices import calibrate_on_devices
from mcpmq.calibrate.sequential import calibrate_sequentially
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError, DeviceError
from mcpmq.execution.device import CPU, progress_label
from mcpmq.plan import Plan, make_plan
from mcpmq.quantized_model import read_calibration_result, write_block
from mcpmq.recipe import Recipe
from mcpmq.system.progress import Item, silent

RECIPE = {
    "name": "devices",
    "method": "auto",
    "targets": "model",
    "weights": {"*": "keep", "vision.layers.0.*": "int8-g32", "language.layers.0.*": "int4-g32", "head": "int8-g32"},
}


@pytest.fixture(scope="module")
def plan(small_checkpoint: Path) -> Plan:
    """A plan of the small checkpoint that selects a method for a vision layer, a language layer and the head."""
    return make_plan(Checkpoint.open(small_checkpoint), Recipe.model_validate(RECIPE))


def block_files(plan: Plan, folder: Path) -> dict[str, Path]:
    """Return the files of all blocks in a new folder."""
    folder.mkdir()
    return {name: folder / f"{name}.safetensors" for name in plan.blocks}


def calibrate(
    plan: Plan, samples: Sequence[Sample], files: dict[str, Path], devices: Sequence[torch.device]
) -> list[str]:
    """Calibrate on several devices and return the labels of the progress."""
    labels = []

    def progress(items: Sequence[Item], label: str) -> Sequence[Item]:
        labels.append(label)
        return items

    calibrate_on_devices(plan, samples, files, progress, write_block, None, devices)
    return labels


TWO_GPUS = pytest.param(
    [torch.device("cuda:0"), torch.device("cuda:1")],
    marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
)


@pytest.mark.parametrize("devices", [[CPU, CPU], TWO_GPUS])
def test_errors_and_token_counts_are_those_of_one_device(
    devices: list[torch.device], plan: Plan, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Two devices with five and four samples: all tokens count, and errors on held-out samples are about as large."""
    alone, shared = block_files(plan, tmp_path / "alone"), block_files(plan, tmp_path / "shared")
    calibrate_sequentially(plan, mixed_set.samples, alone, silent, devices[0])

    labels = calibrate(plan, mixed_set.samples, shared, devices)

    assert progress_label("calibrating", devices[0], 2) in labels
    for block in ("vision.layers.0", "language.layers.0", "head"):
        expected, found = (read_calibration_result(files[block]) for files in (alone, shared))
        assert found.errors == pytest.approx(expected.errors, rel=0.1)
        for name, fields in expected.weights.items():
            assert found.weights[name]["calibration_tokens"] == fields["calibration_tokens"]
    assert alone["embedding"].read_bytes() == shared["embedding"].read_bytes()


def test_an_error_of_another_process_is_that_of_the_calibration(
    plan: Plan, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """The image of the sample of the third device does not exist; the second one loses its connection."""
    broken = Sample.from_prompt("broken", tmp_path / "missing.png", "What is this?", "A circle.")

    samples = [*mixed_set.samples[:2], broken]
    with pytest.raises(DatasetError, match=r"missing\.png"):
        calibrate(plan, samples, block_files(plan, tmp_path / "out"), [CPU, CPU, CPU])


def test_a_killed_process_is_an_error_and_the_run_resumes(plan: Plan, mixed_set: SampleSet, tmp_path: Path) -> None:
    """The process of the second device is killed after some blocks were written; the next run keeps these."""
    files = block_files(plan, tmp_path / "out")

    def kill(items: Sequence[Item], label: str) -> Iterator[Item]:
        for number, item in enumerate(items):
            if "calibrating" in label and number == len(items) - 3:
                children = psutil.Process().children()
                [worker] = [one for one in children if "mcpmq.calibrate.devices" in one.cmdline()]
                worker.kill()
            yield item

    with pytest.raises(DeviceError, match="the process of device `cpu` ended: SIGKILL"):
        calibrate_on_devices(plan, mixed_set.samples, files, kill, write_block, None, [CPU, CPU])
    before = {file: file.stat().st_mtime_ns for file in files.values() if file.is_file()}
    assert 0 < len(before) < len(files)

    calibrate(plan, mixed_set.samples, files, [CPU, CPU])
    assert all(file.is_file() for file in files.values())
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_process_that_ends_is_an_error(plan: Plan, mixed_set: SampleSet, tmp_path: Path) -> None:
    """The second device does not exist; the error has its name and the last line of the log."""
    devices = [CPU, torch.device("xpu", 3)]

    with pytest.raises(DeviceError, match="the process of device `xpu:3` ended: .*") as error:
        calibrate(plan, mixed_set.samples, block_files(plan, tmp_path / "out"), devices)

    assert "run the same command again" in error.value.hint
