"""The conversion from paths: validation before work, held-out samples, shared codes."""

from pathlib import Path
from typing import Any

import pytest

from mcpmq.convert import convert
from mcpmq.errors import DatasetError, FormatError, RecipeError
from mcpmq.evaluate import Settings
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report import Report

SETTINGS = Settings(threads=1)


def run(checkpoint: Path, out: Path, samples: Path, **options: Any) -> Report:
    """Convert to GGUF, with the evaluation set equal to the calibration set, unless options differ."""
    defaults = {"formats": ["gguf"], "calibration": samples, "eval_set": samples, "settings": SETTINGS}
    return convert(checkpoint, out, **{**defaults, **options})


def test_an_evaluation_set_is_measured_completely(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """With an evaluation set no calibration sample is held out."""
    report = run(tiny_checkpoint, tmp_path / "out", tiny_set, bits=8)

    assert report.eval_set.samples == 10
    assert not report.eval_set.held_out_from_calibration
    assert report.artifacts[0].recipe == "phone-int8"


def test_without_an_evaluation_set_a_fifth_is_held_out(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Two of ten samples are measured, and the report records that they are held out."""
    report = run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int8", formats=[], eval_set=None)

    assert report.eval_set.samples == 2
    assert report.eval_set.held_out_from_calibration


def test_codes_are_shared_between_formats(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """A second format uses the codes of the first; `rtn` records no calibration set."""
    codes = tmp_path / "out" / "quantized"
    run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int4")
    times = {file: file.stat().st_mtime_ns for file in codes.rglob("*")}

    run(tiny_checkpoint, tmp_path / "out", tiny_set, recipe="phone-int4", formats=["onnx"])

    assert {file: file.stat().st_mtime_ns for file in codes.rglob("*")} == times
    assert QuantizedModel.open(codes).artifact.manifest.calibration_set is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "quality-int4", "formats": ["gguf", "onnx"]}, FormatError, "`onnx` cannot store"),
        ({"recipe": "phone-int4", "formats": ["ggml"]}, FormatError, "`ggml` is not a format"),
        ({"recipe": "calibrated-int4"}, DatasetError, "shares 10 images or texts"),
        ({"recipe": "phone-int4", "eval_set": "missing"}, DatasetError, "no `manifest.jsonl`"),
        ({"recipe": "phone-int4", "bits": 4}, RecipeError, "both or none"),
        ({}, RecipeError, "both or none"),
        ({"bits": 5}, RecipeError, "5 bits have no recipe"),
    ],
)
def test_invalid_input_is_an_error_before_work(
    options: dict[str, Any], error: type[Exception], message: str, tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """A format that does not support the recipe, an overlapping or missing evaluation set, no recipe or two."""
    with pytest.raises(error, match=message):
        run(tiny_checkpoint, tmp_path / "out", tiny_set, **options)

    assert not (tmp_path / "out").exists()
