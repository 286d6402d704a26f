"""The same inputs give the same bytes, in any folder, on any number of threads: from the checkpoint to the release."""

import shutil
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.execution.chunked_matmul import torch_threads
from mcpmq.export import export
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.release.package import Wanted, package
from mcpmq.release.record import files_under
from tests.fake_releases import report_about, with_terms


def _build(checkpoint: Path, samples: Path, folder: Path, recipe: str, formats: tuple[str, ...], threads: int) -> Path:
    """A whole release, from a copy of everything in this folder."""
    source = Checkpoint.open(with_terms(checkpoint, folder / "given"))
    copied = shutil.copytree(samples, folder / "given" / samples.name)
    lines = (copied / "manifest.jsonl").read_text().splitlines()
    (copied / "manifest.jsonl").write_text("\n".join(lines[:4]))
    seen = CalibrationSet.open(copied)
    with torch_threads(threads):
        quantized = quantize(make_plan(source, Recipe.load(recipe)), folder / "codes", seen)
        artifacts = [export(quantized, name, folder / name) for name in formats]  # type: ignore[arg-type]
    return package(
        artifacts, source, report_about(artifacts), folder / "release", Wanted(largest_file_nbytes=960_000)
    ).path


@pytest.mark.parametrize(("recipe", "formats"), [("calibrated-int4", ("gguf", "onnx")), ("quality-int4", ("gguf",))])
def test_two_builds_are_equal_byte_for_byte(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path, recipe: str, formats: tuple[str, ...]
) -> None:
    """One thread and three, two folders: every file of the releases is the same, their hashes among them."""
    first, second = (
        _build(tiny_checkpoint, tiny_set, tmp_path / name, recipe, formats, threads)
        for name, threads in (("one", 1), ("another folder", 3))
    )

    assert files_under(first) == files_under(second)
    for name in files_under(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
