"""The whole way on a tiny model: every recipe in every format that holds it, measured in its own engine."""

import json
from pathlib import Path

import pytest

from mcpmq.artifact import Artifact
from mcpmq.convert import convert
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Settings
from mcpmq.formats import FormatName
from mcpmq.recipe import Recipe
from mcpmq.report import Report
from tests.tiny_families import TINY_FAMILIES

# A random model knows nothing: whatever it is made of, losses must stay near the original's.
NEAR = {"full": 1e-3, "phone-int8": 0.02, "phone-int4": 0.2, "quality-int4": 0.2}


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        ("full", ["gguf", "onnx"]),
        ("phone-int8", ["gguf", "onnx"]),
        ("phone-int4", ["gguf", "onnx"]),
        ("quality-int4", ["gguf"]),
    ],
)
def test_a_checkpoint_becomes_measured_artifacts(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path, recipe: str, formats: list[FormatName]
) -> None:
    """Artifacts verify, reports reload, perplexities are near the original's on images and on text."""
    out = tmp_path / "out"

    report = convert(tiny_checkpoint, out, Recipe.load(recipe), formats, tiny_set, None, Settings(threads=1))

    assert Report.load(out).model_dump_json() == report.model_dump_json()
    assert report.measured_on.held_out_from_calibration
    assert [entry.kind for entry in report.artifacts] == formats
    for entry in report.artifacts:
        Artifact.open(out / entry.kind).verify()
        assert entry.measurement.kinds.keys() == {"image", "text"}
        for kind, difference in entry.differences.items():
            assert abs(difference.loss_increase.mean) < NEAR[recipe], (entry.kind, kind)


def test_a_second_run_finds_its_work_done(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """The same command again rewrites no artifact and reports the same losses."""
    asked = (
        tiny_checkpoint,
        tmp_path / "out",
        Recipe.load("phone-int4"),
        ["gguf"],
        tiny_set,
        None,
        Settings(threads=1),
    )
    first = convert(*asked)  # type: ignore[arg-type]
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "gguf").iterdir()}

    second = convert(*asked)  # type: ignore[arg-type]

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "gguf").iterdir()} == times
    assert [entry.measurement.samples for entry in second.artifacts] == [
        entry.measurement.samples for entry in first.artifacts
    ]


def test_a_changed_artifact_is_not_measured(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """What the manifest does not vouch for is refused."""
    asked = (
        tiny_checkpoint,
        tmp_path / "out",
        Recipe.load("phone-int4"),
        ["onnx"],
        tiny_set,
        None,
        Settings(threads=1),
    )
    convert(*asked)  # type: ignore[arg-type]
    manifest = json.loads((tmp_path / "out" / "onnx" / "mcpmq.json").read_text())
    data = tmp_path / "out" / "onnx" / max(manifest["files"], key=lambda file: file["nbytes"])["path"]
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")

    with pytest.raises(ArtifactError, match="is not the file that was written"):
        convert(*asked)  # type: ignore[arg-type]


def test_another_family_goes_the_same_way(tiny_set: Path, tmp_path: Path) -> None:
    """Qwen2-VL, calibrated: one command, both formats, each measured in its engine."""
    [family] = [one for one in TINY_FAMILIES if one.name == "qwen2-vl"]
    checkpoint, recipe = family.build(tmp_path / "tiny"), Recipe.load("calibrated-int4")

    report = convert(checkpoint, tmp_path / "out", recipe, ["gguf", "onnx"], tiny_set, None, Settings(threads=1))

    assert [entry.kind for entry in report.artifacts] == ["gguf", "onnx"]
    for entry in report.artifacts:
        assert entry.measurement.kinds.keys() == {"image", "text"}
        assert all(abs(one.loss_increase.mean) < 0.2 for one in entry.differences.values())
