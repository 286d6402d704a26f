"""Equal inputs give equal bytes, in any folder and with any number of threads, from checkpoint to release."""

import shutil
from pathlib import Path

import pytest

from benchmarks.commands import recipe_argument
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.release.package import ReleaseOptions, package
from mcpmq.release.record import list_files
from mcpmq.system.torch_threads import torch_threads
from tests.fake_releases import report_for, with_license


def _build(checkpoint: Path, samples: Path, folder: Path, recipe: str, formats: tuple[str, ...], threads: int) -> Path:
    """Build a release in a folder, from copies of the checkpoint and four samples."""
    source = Checkpoint.open(with_license(checkpoint, folder / "inputs"))
    copy = shutil.copytree(samples, folder / "inputs" / samples.name)
    lines = (copy / "manifest.jsonl").read_text().splitlines()
    (copy / "manifest.jsonl").write_text("\n".join(lines[:4]))
    calibration = SampleSet.open(copy)
    with torch_threads(threads):
        quantized = quantize(make_plan(source, Recipe.load(recipe)), folder / "codes", calibration)
        artifacts = [export(quantized, name, folder / name) for name in formats]  # type: ignore[arg-type]
    return package(
        artifacts, source, report_for(artifacts), folder / "release", ReleaseOptions(max_file_nbytes=960_000)
    ).path


@pytest.mark.parametrize(
    ("recipe", "formats"), [("calibrated-int4", ("gguf", "onnx")), (recipe_argument("quality-int4"), ("gguf",))]
)
def test_two_builds_are_equal_byte_for_byte(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path, recipe: str, formats: tuple[str, ...]
) -> None:
    """Releases built with one thread and with three threads, in two folders, have equal files."""
    first, second = (
        _build(tiny_checkpoint, tiny_set, tmp_path / name, recipe, formats, threads)
        for name, threads in (("one", 1), ("another folder", 3))
    )

    assert list_files(first) == list_files(second)
    for name in list_files(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
