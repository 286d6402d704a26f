"""The whole way on a tiny model: every recipe in every format that holds it, measured in its own engine."""

import json
from pathlib import Path

import numpy as np
import pytest

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.convert import convert
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Settings
from mcpmq.export import export
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.formats import FormatName
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.report import Report
from mcpmq.runners.gguf import open_runner as open_gguf
from mcpmq.runners.onnx import open_runner as open_onnx
from mcpmq.runners.torch import open_runner as open_torch
from tests.loss_tools import losses_of
from tests.onnx_tools import artifact_of
from tests.tiny import build_checkpoint, make_uneven
from tests.tiny_families import TINY_FAMILIES

# A random model knows nothing: whatever it is made of, losses must stay near the original's.
NEAR = {"full": 1e-3, "phone-int8": 0.02, "phone-int4": 0.2, "quality-int4": 0.2, "language-int8": 0.05}


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        ("full", ["gguf", "onnx"]),
        ("phone-int8", ["gguf", "onnx"]),
        ("phone-int4", ["gguf", "onnx"]),
        ("quality-int4", ["gguf"]),
        ("language-int8", ["gptq", "bnb"]),
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
            assert abs(difference.loss_increase.value) < NEAR[recipe], (entry.kind, kind)


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


@pytest.fixture(scope="module")
def smoothed(mixed_set: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """A model of uneven channels, rounded after its scales have moved wherever that helped."""
    folder = tmp_path_factory.mktemp("smoothed")
    checkpoint = Checkpoint.open(make_uneven(build_checkpoint(folder / "tiny")))
    weights = {"*": "int8-g32", "language.*": "int4-g32"}
    recipe = Recipe.model_validate({"name": "smooth", "smooth": "awq", "weights": weights})
    quantized = quantize(make_plan(checkpoint, recipe), folder / "quantized", mixed_set)
    components = {name.partition(".")[0] for name, record in quantized.records.items() if record.smooth}
    assert components >= {"vision", "language"}
    return quantized


def test_scales_that_moved_are_the_same_in_every_engine(
    smoothed: Quantized, mixed_set: CalibrationSet, tmp_path: Path
) -> None:
    """ONNX Runtime computes torch's losses with norms, biases and rows that took scales, token by token; llama.cpp,
    which rounds activations to 8 bits, nearly, and the manifest of either says what was chosen."""
    processor = MiniCpmVProcessor.open(smoothed.path)
    samples = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in list(mixed_set)[::3]]
    paths = smoothed.path, smoothed.path.parent / "tiny"
    expected, original = (np.concatenate([*losses_of(open_torch(path, 1), samples)]) for path in paths)

    onnx = artifact_of(smoothed, tmp_path / "onnx")
    gguf = export(smoothed, "gguf", tmp_path / "gguf").path

    np.testing.assert_allclose(np.concatenate([*losses_of(open_onnx(onnx, 1), samples)]), expected, rtol=0, atol=2e-5)
    distance = np.abs(np.concatenate([*losses_of(open_gguf(gguf, 1), samples)]) - expected).mean()
    assert distance < np.abs(original - expected).mean() / 3
    for path in (onnx, gguf):
        assert Artifact.open(path).manifest.held_out_errors == smoothed.artifact.manifest.held_out_errors


def test_another_family_goes_the_same_way(tiny_set: Path, tmp_path: Path) -> None:
    """Qwen2-VL, calibrated: one command, both formats, each measured in its engine."""
    [family] = [one for one in TINY_FAMILIES if one.name == "qwen2-vl"]
    checkpoint, recipe = family.build(tmp_path / "tiny"), Recipe.load("calibrated-int4")

    report = convert(checkpoint, tmp_path / "out", recipe, ["gguf", "onnx"], tiny_set, None, Settings(threads=1))

    assert [entry.kind for entry in report.artifacts] == ["gguf", "onnx"]
    for entry in report.artifacts:
        assert entry.measurement.kinds.keys() == {"image", "text"}
        assert all(abs(one.loss_increase.value) < 0.2 for one in entry.differences.values())
