"""Comparison in real engines: results of an artifact, engine baselines, invalid combinations."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mcpmq.artifact import Artifact, CalibrationRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError, DatasetError
from mcpmq.evaluate import ENGINE_BASELINE, ORIGINAL, Settings
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.report import ArtifactResult, Report, compare, report_table
from mcpmq.report.evaluation import evaluate
from tests.onnx_tools import write_onnx_artifact

ONE_THREAD = Settings(threads=1)


@pytest.fixture(scope="module")
def made(tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return phone-int4 as ONNX, next to its quantized model, as `mcpmq convert` writes them."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_int4.path, folder / "quantized")
    return Artifact.open(write_onnx_artifact(QuantizedModel.open(folder / "quantized"), folder / "onnx"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the report."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def compared(tiny_checkpoint: Path, mixed_set: SampleSet, made: Artifact, tiny_full_onnx: Path, folder: Path) -> Report:
    """Return the report of the original, the engine baseline in ONNX Runtime, and the quantized artifact."""
    original, baseline = Checkpoint.open(tiny_checkpoint), Artifact.open(tiny_full_onnx)
    return evaluate([made], original, mixed_set, ONE_THREAD, out=folder, engine_baselines=[baseline])


@pytest.fixture(scope="module")
def result(compared: Report) -> ArtifactResult:
    """Return the results of the quantized artifact."""
    return compared.artifacts[1]


def test_engine_and_quantization_errors_add_up(compared: Report, result: ArtifactResult) -> None:
    """The loss increase is that of the engine baseline plus the one from the engine baseline to the artifact."""
    baseline = compared.artifacts[0]
    assert [one.recipe for one in compared.artifacts] == ["full", "phone-int4"]
    assert baseline.engine_baseline_differences is None
    assert result.engine_baseline_differences is not None
    for kind, by_quantization in result.engine_baseline_differences.items():
        whole, engine = result.differences[kind], baseline.differences[kind]
        assert engine.kl_divergence_largest < 1e-4
        assert by_quantization.loss_increase.value + engine.loss_increase.value == pytest.approx(
            whole.loss_increase.value, abs=1e-6
        )
    assert set(result.measurement.samples[0].compared) == {ORIGINAL, ENGINE_BASELINE}
    table = report_table(compared)
    assert table.columns == ["original", "onnx full", "onnx phone-int4"]
    assert dict(table.rows)["  change from engine baseline, %"][:2] == ["", ""]


def test_a_result_has_hash_sizes_and_timings(result: ArtifactResult, made: Artifact) -> None:
    """SHA-256, bytes by scheme, bits per weight, and the timings of all phases."""
    assert result.sha256 == made.sha256
    assert result.calibration_set is None
    assert 4.5 < result.weights.bits_per_weight < 9
    assert sum(result.weights.nbytes_by_scheme.values()) == sum(one.nbytes for one in made.manifest.weights)
    phases = result.measurement.machine_dependent.phases
    assert phases is not None
    assert phases.encode_seconds_per_slice > 0
    assert min(phases.prefill_tokens_per_second, phases.decode_tokens_per_second) > 0


def test_the_report_of_an_evaluation_is_written(compared: Report, folder: Path) -> None:
    """With engine baselines, too, JSON, Markdown and HTML are written."""
    assert Report.load(folder) == compared
    assert {file.name for file in folder.iterdir()} == {"report.json", "report.md", "report.html"}


def test_layers_have_bits_and_weight_errors(
    compared: Report, result: ArtifactResult, tiny_checkpoint: Path, made: Artifact
) -> None:
    """The error of one block equals a direct computation; without a quantized model errors are unknown."""
    blocks = {block.name: block for block in result.layers.blocks}
    checkpoint, codes = Checkpoint.open(tiny_checkpoint), QuantizedModel.open(made.path.parent / "quantized")
    [head] = [spec for spec in checkpoint.specs if spec.name == "head"]
    from mcpmq.execution.torch_model import to_float

    before = checkpoint.load(head).float().double().numpy()
    after = to_float(codes.load("head"), head).double().numpy()
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert result.layers.error_basis == "weights"
    assert blocks["head"].error == pytest.approx(expected, rel=1e-5)
    layer, last = blocks["language.layers.0"].error, blocks["head"].error
    assert layer is not None
    assert last is not None
    assert layer > last > 0
    assert blocks["language.layers.0"].bits_per_weight < blocks["head"].bits_per_weight < 9
    assert compared.artifacts[0].layers.error_basis is None
    assert all(block.error is None for block in compared.artifacts[0].layers.blocks)


def test_the_worst_samples_are_sorted_by_loss_increase(
    compared: Report, result: ArtifactResult, mixed_set: SampleSet
) -> None:
    """They have answer and argmax tokens, and a thumbnail if the sample has an image."""
    increases = {
        after.id: sum(after.losses) - sum(before.losses)
        for before, after in zip(compared.original.samples, result.measurement.samples, strict=True)
    }
    assert [one.id for one in result.worst_samples] == sorted(
        (name for name, increase in increases.items() if increase > 0), key=increases.__getitem__, reverse=True
    )[: len(result.worst_samples)]
    samples = {sample.id: sample for sample in mixed_set}
    for one in result.worst_samples:
        assert "".join(one.answer_tokens).startswith(samples[one.id].answer)
        assert len(one.answer_tokens) == len(one.original_argmax) == len(one.artifact_argmax)
        assert (one.image is not None) == (samples[one.id].image is not None)
        assert one.image is None or one.image.startswith("data:image/jpeg;base64,")


def test_an_invalid_engine_baseline_is_an_error(
    tiny_checkpoint: Path, mixed_set: SampleSet, made: Artifact, tiny_full: QuantizedModel
) -> None:
    """A quantized one, one in another format, or two in one format are errors before a measurement."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with pytest.raises(ArtifactError, match="is quantized to `int4-g32`, `int8-g32`"):
        compare(checkpoint, [made], mixed_set, ONE_THREAD, engine_baselines=[made])
    with pytest.raises(ArtifactError, match="has the format quantized, and no artifact"):
        compare(checkpoint, [made], mixed_set, ONE_THREAD, engine_baselines=[tiny_full.artifact])
    baselines = [tiny_full.artifact] * 2
    with pytest.raises(ArtifactError, match="two engine baselines have the format quantized"):
        compare(checkpoint, [tiny_full.artifact], mixed_set, ONE_THREAD, engine_baselines=baselines)


def test_calibration_samples_are_not_measured(tiny_checkpoint: Path, mixed_set: SampleSet, made: Artifact) -> None:
    """An evaluation set that shares one image with the calibration set is an error."""
    used = CalibrationRecord.from_samples(mixed_set).model_copy(update={"fingerprints": mixed_set.fingerprints[:1]})
    calibrated = Artifact(made.path, made.manifest.model_copy(update={"calibration_set": used}))
    with pytest.raises(DatasetError, match="shares 1 images, videos or texts with the calibration set `mixed0`"):
        compare(Checkpoint.open(tiny_checkpoint), [calibrated], mixed_set, ONE_THREAD)


def test_a_calibrated_artifact_is_measured_on_calibration_samples(
    tiny_checkpoint: Path, tiny_set: Path, mixed_set: SampleSet, tmp_path: Path
) -> None:
    """Two of ten samples are held out of the calibration set; both models answer the worst samples."""
    checkpoint, calibration = Checkpoint.open(tiny_checkpoint), SampleSet.open(tiny_set)
    weights = Recipe.load("phone-int4").to_dict()["weights"]
    recipe = Recipe.model_validate({"name": "fitted", "method": "rtn-imatrix", "weights": weights})
    quantized = quantize(make_plan(checkpoint, recipe), tmp_path / "codes", calibration)

    settings = Settings(threads=1, generate_answers=True)
    report = compare(checkpoint, [quantized.artifact], mixed_set, settings, calibration=calibration)
    found = report.artifacts[0].calibration_kl_divergence
    worst = report.artifacts[0].worst_samples
    assert worst
    assert all(one.original_answer and one.artifact_answer for one in worst)

    assert found is not None
    assert set(found) == {"image", "text"}
    assert all(0 < one.value < 10 for one in found.values())
    assert Report.model_validate_json(report.model_dump_json()).model_dump_json() == report.model_dump_json()
    without = compare(checkpoint, [], mixed_set, Settings(threads=1), calibration=calibration)
    assert without.artifacts == ()
