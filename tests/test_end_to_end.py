"""Conversion of tiny models: every recipe in every format that supports it, measured in its engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.commands import recipe_argument
from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.convert import convert
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Settings
from mcpmq.export import export
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.formats import FormatName
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.report import Report
from mcpmq.runners.gguf import open_runner as open_gguf
from mcpmq.runners.onnx import open_runner as open_onnx
from mcpmq.runners.torch import open_runner as open_torch
from tests.commands import Command
from tests.loss_tools import answer_losses
from tests.onnx_tools import write_onnx_artifact
from tests.tiny import build_checkpoint, make_uneven
from tests.tiny_families import TINY_FAMILIES

# Upper limits of the loss increase; the loss of a random model changes little.
K_QUANTS = recipe_argument("quality-int4")
MAX_LOSS_INCREASE = {"full": 1e-3, "phone-int8": 0.02, "phone-int4": 0.2, K_QUANTS: 0.2, "language-int8": 0.05}


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        ("full", ["gguf", "onnx"]),
        ("phone-int8", ["gguf", "onnx"]),
        ("phone-int4", ["gguf", "onnx"]),
        (K_QUANTS, ["gguf"]),
        ("language-int8", ["gptq", "bnb"]),
    ],
)
def test_a_checkpoint_becomes_measured_artifacts(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path, recipe: str, formats: list[FormatName]
) -> None:
    """Artifacts verify, the report is read back, and the loss is near that of the original on images and text."""
    out = tmp_path / "out"

    report = convert(
        tiny_checkpoint, out, recipe=recipe, formats=formats, calibration=tiny_set, settings=Settings(threads=1)
    )

    assert Report.load(out).model_dump_json() == report.model_dump_json()
    assert report.eval_set.held_out_from_calibration
    assert [entry.kind for entry in report.artifacts] == formats
    for entry in report.artifacts:
        Artifact.open(out / entry.kind).verify()
        assert entry.measurement.groups.keys() == {"image", "text"}
        for group, difference in entry.differences.items():
            assert abs(difference.loss_increase.value) < MAX_LOSS_INCREASE[recipe], (entry.kind, group)


def test_a_second_run_reuses_the_artifacts(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """The same conversion again rewrites no artifact and reports the same losses."""
    options = {"recipe": "phone-int4", "formats": ["gguf"], "calibration": tiny_set, "settings": Settings(threads=1)}
    first = convert(tiny_checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "gguf").iterdir()}

    second = convert(tiny_checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]

    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "gguf").iterdir()} == times
    assert [entry.measurement.samples for entry in second.artifacts] == [
        entry.measurement.samples for entry in first.artifacts
    ]


def test_a_changed_artifact_is_not_measured(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """A file that differs from the manifest is an error."""
    options = {"recipe": "phone-int4", "formats": ["onnx"], "calibration": tiny_set, "settings": Settings(threads=1)}
    convert(tiny_checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]
    manifest = json.loads((tmp_path / "out" / "onnx" / "mcpmq.json").read_text())
    data = tmp_path / "out" / "onnx" / max(manifest["files"], key=lambda file: file["nbytes"])["path"]
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")

    with pytest.raises(ArtifactError, match="differs from its SHA-256"):
        convert(tiny_checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def smoothed(mixed_set: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """Return a model with uneven channels, quantized with AWQ smoothing."""
    folder = tmp_path_factory.mktemp("smoothed")
    checkpoint = Checkpoint.open(make_uneven(build_checkpoint(folder / "tiny")))
    weights = {"*": "int8-g32", "language.*": "int4-g32"}
    recipe = Recipe.model_validate({"name": "smooth", "smooth": "awq", "weights": weights})
    quantized = quantize(make_plan(checkpoint, recipe), folder / "quantized", mixed_set)
    components = {name.partition(".")[0] for name, record in quantized.records.items() if record.smoothing_exponent}
    assert components >= {"vision", "language"}
    return quantized


def test_smoothing_scales_are_equal_in_every_engine(
    smoothed: QuantizedModel, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """ONNX Runtime has the losses of torch token by token; llama.cpp, which quantizes activations to 8 bits, is near
    them; and both manifests have the errors of all methods."""
    processor = MiniCpmVProcessor.open(smoothed.path)
    samples = [processor.encode(one.id, one.image, one.prompt, one.answer) for one in list(mixed_set)[::3]]
    paths = smoothed.path, smoothed.path.parent / "tiny"
    expected, original = (np.concatenate([*answer_losses(open_torch(path, 1), samples)]) for path in paths)

    onnx = write_onnx_artifact(smoothed, tmp_path / "onnx")
    gguf = export(smoothed, "gguf", tmp_path / "gguf").path

    np.testing.assert_allclose(
        np.concatenate([*answer_losses(open_onnx(onnx, 1), samples)]), expected, rtol=1e-5, atol=2e-5
    )
    distance = np.abs(np.concatenate([*answer_losses(open_gguf(gguf, 1), samples)]) - expected).mean()
    assert distance < np.abs(original - expected).mean() / 3
    for path in (onnx, gguf):
        assert Artifact.open(path).manifest.held_out_errors == smoothed.artifact.manifest.held_out_errors


@pytest.mark.usefixtures("started_workers")
def test_another_family_is_converted(tiny_set: Path, tmp_path: Path) -> None:
    """Qwen2-VL is calibrated, exported to both formats, and measured in both engines."""
    [family] = [one for one in TINY_FAMILIES if one.name == "qwen2-vl"]
    checkpoint = family.build(tmp_path / "tiny")

    report = convert(
        checkpoint,
        tmp_path / "out",
        bits=4,
        formats=["gguf", "onnx"],
        calibration=tiny_set,
        settings=Settings(threads=1),
    )

    assert [entry.kind for entry in report.artifacts] == ["gguf", "onnx"]
    for entry in report.artifacts:
        assert entry.measurement.groups.keys() == {"image", "text"}
        assert all(abs(one.loss_increase.value) < 0.2 for one in entry.differences.values())


def test_a_training_set_of_conversations_calibrates_and_measures(
    tiny_checkpoint: Path, tmp_path: Path, mcpmq: Command
) -> None:
    """Several images and turns from records of ms-swift: the report has every kind of sample, and the engines agree."""
    for name, seed in (("a.png", 1), ("b.png", 2)):
        noise = np.random.default_rng(seed).integers(0, 256, (90, 60, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    records: list[dict[str, Any]] = [
        {"query": "<image> or <image>?", "response": "the first", "history": [["<image>A?", "yes"]]},
        {"query": "<image>What?", "response": "noise"},
        {"query": "How many?", "response": "three", "system": "Be brief.", "history": [["Hi", "Hello"]]},
    ]
    images = [["a.png", "b.png", "a.png"], ["b.png"], []]
    lines = [
        {**record, "query": f"{record['query']} {number}", "images": used}
        for number in range(5)
        for record, used in zip(records, images, strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ["--recipe", "phone-int8", "--threads", "1", "--no-cache", "--no-answers", "-f", "gguf", "-f", "onnx"]
    given = ["--calibration", tmp_path / "train.jsonl", "--eval-set", tmp_path / "set"]
    assert mcpmq("dataset", "convert", tmp_path / "train.jsonl", tmp_path / "set").exit_code == 0

    converted = mcpmq("convert", tiny_checkpoint, tmp_path / "out", *options, *given, "--json")

    assert converted.exit_code == 0, converted.stderr
    report = Report.load(tmp_path / "out")
    assert {group: one.samples for group, one in report.original.groups.items()} == {"image": 5, "images": 5, "text": 5}
    assert report.original.groups["images"].tokens > report.original.groups["image"].tokens
    for entry in report.artifacts:
        for difference in entry.differences.values():
            assert abs(difference.loss_increase.value) < MAX_LOSS_INCREASE["phone-int8"]
