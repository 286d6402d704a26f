"""The folder of several conversions: other recipes are added, other inputs are errors before work."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpmq.artifact import CalibrationRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.conversion_folder import quantized_artifacts
from mcpmq.convert import convert
from mcpmq.dataset import SampleSet
from mcpmq.errors import OutputError
from mcpmq.evaluate import Settings
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.report import Report


def run(checkpoint: Path, out: Path, samples: Path, **options: Any) -> Report:
    """Convert to GGUF, with the evaluation set equal to the calibration set, unless options differ."""
    defaults = {"formats": ["gguf"], "calibration": samples, "eval_set": samples, "settings": Settings(threads=1)}
    return convert(checkpoint, out, **{**defaults, **options})


def test_a_format_with_another_recipe_is_added_to_a_folder(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Its quantized model gets a folder of its own; the artifacts of the first run are named, and stay unchanged."""
    out, notices = tmp_path / "out", list[str]()
    run(tiny_checkpoint, out, tiny_set, recipe="phone-int8", keep_quantized=True)
    before = {file: file.stat().st_mtime_ns for file in (out / "gguf").rglob("*") if file.name != "README.md"}
    options = {"formats": ["onnx"], "settings": Settings(threads=1, notify=notices.append), "keep_quantized": True}

    report = run(tiny_checkpoint, out, tiny_set, recipe="phone-int4", **options)

    assert [one.recipe for one in report.artifacts] == ["phone-int4"]
    assert [one.path.name for one in quantized_artifacts(out)] == ["quantized", "quantized-phone-int4"]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert any(f"{out / 'gguf'} of an earlier run" in text for text in notices)
    with pytest.raises(OutputError, match="gguf` was made with the recipe `phone-int8`, which differs from") as caught:
        run(tiny_checkpoint, out, tiny_set, recipe="phone-int4")
    assert "give another folder, or delete this one" in caught.value.hint
    assert not (out / "quantized-phone-int4.partial").exists()


def test_a_format_of_another_calibration_set_is_an_error_before_work(
    tiny_checkpoint: Path, tiny_set: Path, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Also if the recipe is the same."""
    folder = tmp_path / "out" / "quantized"
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("phone-int8"))
    quantize(plan, folder)
    manifest = json.loads((folder / "mcpmq.json").read_text())
    manifest["recipe"] = Recipe.load("calibrated-int4").to_dict()
    record = CalibrationRecord.from_samples(SampleSet.open(tiny_set)).model_dump()
    manifest["calibration_set"] = record | {"sha256": "0" * 64}
    (tmp_path / "out" / "gguf").mkdir()
    (tmp_path / "out" / "gguf" / "mcpmq.json").write_text(json.dumps(manifest | {"kind": "gguf"}))

    with pytest.raises(OutputError, match="gguf` was made with another calibration set, `"):
        run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="calibrated-int4", eval_set=mixed_set.path)
