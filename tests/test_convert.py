"""The whole way refuses early, and measures on what it did not calibrate on."""

from pathlib import Path

import pytest

from mcpmq.convert import convert
from mcpmq.errors import CalibrationError, FormatError
from mcpmq.evaluate import Settings
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe

SETTINGS = Settings(threads=1)


def test_a_named_set_is_measured_whole(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """With a held-out set of its own, all of the calibration set calibrates."""
    report = convert(
        tiny_checkpoint, tmp_path / "out", Recipe.load("phone-int8"), ["gguf"], tiny_set, tiny_set, SETTINGS
    )

    assert report.measured_on.samples == 10
    assert not report.measured_on.held_out_from_calibration


def test_a_fifth_is_held_out_otherwise(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """What calibrates is not what is measured, and the report says where it came from."""
    report = convert(tiny_checkpoint, tmp_path / "out", Recipe.load("phone-int8"), [], tiny_set, None, SETTINGS)

    assert report.measured_on.samples == 2
    assert report.measured_on.held_out_from_calibration


def test_codes_are_shared_between_formats(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Another format later uses the codes that are there."""
    asked = (tiny_checkpoint, tmp_path / "out", Recipe.load("phone-int4"))
    convert(*asked, ["gguf"], tiny_set, tiny_set, SETTINGS)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "quantized").rglob("*")}

    convert(*asked, ["onnx"], tiny_set, tiny_set, SETTINGS)

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "quantized").rglob("*")} == times
    assert (
        Quantized.open(tmp_path / "out" / "quantized").artifact.manifest.calibrated_on is None
    )  # rtn looks at nothing


def test_a_format_that_cannot_hold_it_is_refused_before_work(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Even if another of the formats could."""
    with pytest.raises(FormatError, match="`onnx` cannot hold"):
        convert(
            tiny_checkpoint, tmp_path / "out", Recipe.load("quality-int4"), ["gguf", "onnx"], tiny_set, None, SETTINGS
        )

    assert not (tmp_path / "out").exists()


def test_a_held_out_set_that_was_calibrated_on_is_refused_before_work(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Where rounding looks at samples; to nearest none decides anything."""
    with pytest.raises(CalibrationError, match="shares 10 pictures or texts"):
        convert(
            tiny_checkpoint, tmp_path / "out", Recipe.load("calibrated-int4"), ["gguf"], tiny_set, tiny_set, SETTINGS
        )

    assert not (tmp_path / "out").exists()


def test_a_held_out_set_that_is_broken_is_refused_before_work(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """It would be missed only hours later."""
    with pytest.raises(CalibrationError):
        convert(
            tiny_checkpoint, tmp_path / "out", Recipe.load("phone-int4"), ["gguf"], tiny_set, tmp_path / "no", SETTINGS
        )

    assert not (tmp_path / "out").exists()
