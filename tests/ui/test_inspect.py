"""Description of the object at a path."""

import json
from pathlib import Path

import pytest

from mcpmq import ui
from mcpmq.artifact import Artifact, CalibrationRecord
from mcpmq.dataset import SampleSet
from mcpmq.errors import CheckpointError
from mcpmq.quantized_model import QuantizedModel
from mcpmq.report import write_report
from tests.fake_reports import make_report


def test_every_kind_of_path_is_recognized(
    tiny_checkpoint: Path,
    tiny_int4: QuantizedModel,
    mixed_set: SampleSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint, an artifact, a set and a report are printed as text and as JSON."""
    write_report(make_report(1), tmp_path)
    paths = (tiny_checkpoint, tiny_int4.path, mixed_set.path, tmp_path, tmp_path / "report.json")
    beginnings = ("checkpoint", "quantized artifact", "set", "model [v2] on", "model [v2] on")
    keys = ("bytes_by_component", "recipe", "tags", "eval_set", "eval_set")
    for path, beginning, key in zip(paths, beginnings, keys, strict=True):
        ui.inspect_path(path)
        assert capsys.readouterr().out.startswith(beginning)
        ui.inspect_path(path, as_json=True)
        assert key in json.loads(capsys.readouterr().out)


def test_an_artifact_is_printed_with_its_calibration_set(
    tiny_int4: QuantizedModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The set, and for every component the tokens of the matrix with the fewest; nothing without calibration."""
    manifest = tiny_int4.artifact.manifest
    tokens = {
        "language.layers.0.mlp.up": {"vision": 1234, "text": 5, "answer": 6},
        "projector.kv": {"vision": 9, "text": 0, "answer": 0},
        "projector.out": {"vision": 3, "text": 0, "answer": 0},
    }
    weights = tuple(
        record.model_copy(update={"calibration_tokens": tokens.get(record.name)}) for record in manifest.weights
    )
    used = CalibrationRecord(name="starter", sha256="ab" * 32, samples=1000, with_image=7, fingerprints=())
    calibrated = manifest.model_copy(update={"weights": weights, "calibration_set": used})

    ui.print_artifact(Artifact(tmp_path, calibrated))
    printed = " ".join(capsys.readouterr().out.split())
    assert "starter, 1,000 samples, 7 with an image, sha256 abab" in printed
    assert "calibration tokens, language 1,234 vision, 5 text, 6 answer" in printed
    assert "calibration tokens, projector at least 3 vision" in printed

    ui.print_artifact(tiny_int4.artifact)
    assert "calibration tokens" not in capsys.readouterr().out


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    """The error is that of a missing checkpoint."""
    with pytest.raises(CheckpointError, match="does not exist"):
        ui.inspect_path(tmp_path / "nothing")
