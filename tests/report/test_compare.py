"""Comparing in real engines: what a report says of an artifact beside its losses, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mcpmq.artifact import Artifact, CalibrationRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError, CalibrationError
from mcpmq.evaluate import ORIGINAL, UNQUANTIZED, Settings
from mcpmq.quantized_model import Quantized
from mcpmq.report import Entry, Report, compare, table_of
from tests.onnx_tools import artifact_of

ONE_THREAD = Settings(threads=1)


@pytest.fixture(scope="module")
def made(tiny_int4: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """phone-int4 as ONNX, beside the codes that it was exported from, as `mcpmq convert` leaves them."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_int4.path, folder / "quantized")
    return Artifact.open(artifact_of(Quantized.open(folder / "quantized"), folder / "onnx"))


@pytest.fixture(scope="module")
def compared(tiny_checkpoint: Path, mixed_set: CalibrationSet, made: Artifact, tiny_full_onnx: Path) -> Report:
    """The original, the unquantized artifact in ONNX Runtime, and the quantized one."""
    full = Artifact.open(tiny_full_onnx)
    return compare(Checkpoint.open(tiny_checkpoint), [made], mixed_set, ONE_THREAD, unquantized=[full])


@pytest.fixture(scope="module")
def entry(compared: Report) -> Entry:
    """The quantized artifact."""
    return compared.artifacts[1]


def test_the_engine_is_told_from_quantization(compared: Report, entry: Entry) -> None:
    """The unquantized artifact is the third column; the rest of a difference is quantization's."""
    full = compared.artifacts[0]
    assert [one.recipe for one in compared.artifacts] == ["full", "phone-int4"]
    assert full.by_quantization is None
    assert entry.by_quantization is not None
    for kind, by_quantization in entry.by_quantization.items():
        whole, engine = entry.differences[kind], full.differences[kind]
        assert engine.kl_divergence_largest < 1e-4
        assert by_quantization.loss_increase.value + engine.loss_increase.value == pytest.approx(
            whole.loss_increase.value, abs=1e-6
        )
    assert set(entry.measurement.samples[0].compared) == {ORIGINAL, UNQUANTIZED}
    table = table_of(compared)
    assert table.columns == ["original", "onnx full", "onnx phone-int4"]
    assert dict(table.rows)["  by quantization alone, %"][:2] == ["", ""]


def test_what_an_artifact_is_made_of_is_said(entry: Entry, made: Artifact) -> None:
    """Its hash, its bytes by scheme, its bits, its context's keys and values, and the times of its phases."""
    assert entry.sha256 == made.sha256
    assert entry.calibrated_on is None
    assert 4.5 < entry.weights.bits_per_weight < 9
    assert sum(entry.weights.nbytes_by_scheme.values()) == sum(one.nbytes for one in made.manifest.weights)
    phases = entry.measurement.machine_dependent.phases
    assert phases is not None
    assert phases.encode_seconds_per_slice > 0
    assert min(phases.prefill_tokens_per_second, phases.decode_tokens_per_second) > 0


def test_layers_have_bits_and_the_errors_of_their_weights(
    compared: Report, entry: Entry, tiny_checkpoint: Path, made: Artifact
) -> None:
    """Brute force for one block; nothing is lost where nothing is quantized, and nothing known without the codes."""
    blocks = {block.name: block for block in entry.layers.blocks}
    checkpoint, codes = Checkpoint.open(tiny_checkpoint), Quantized.open(made.path.parent / "quantized")
    [head] = [spec for spec in checkpoint.specs if spec.name == "head"]
    from mcpmq.execution.torch_model import floats_of

    before = checkpoint.load(head).float().double().numpy()
    after = floats_of(codes.load("head"), head).double().numpy()
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert entry.layers.errors_of == "weights"
    assert blocks["head"].error == pytest.approx(expected, rel=1e-5)
    assert blocks["language.layers.0"].error > blocks["head"].error > 0
    assert blocks["language.layers.0"].bits_per_weight < blocks["head"].bits_per_weight < 9
    assert compared.artifacts[0].layers.errors_of is None
    assert all(block.error is None for block in compared.artifacts[0].layers.blocks)


def test_the_worst_samples_come_with_their_images_and_answers(
    compared: Report, entry: Entry, mixed_set: CalibrationSet
) -> None:
    """By how much less likely the right answer became; texts token by token, images only where there are some."""
    increases = {
        after.id: sum(after.losses) - sum(before.losses)
        for before, after in zip(compared.original.samples, entry.measurement.samples, strict=True)
    }
    assert [one.id for one in entry.worst] == sorted(
        (name for name, increase in increases.items() if increase > 0), key=increases.__getitem__, reverse=True
    )[: len(entry.worst)]
    given = {sample.id: sample for sample in mixed_set}
    for one in entry.worst:
        assert "".join(one.answer).startswith(given[one.id].answer)
        assert len(one.answer) == len(one.original) == len(one.artifact)
        assert (one.image is not None) == (given[one.id].image is not None)
        assert one.image is None or one.image.startswith("data:image/jpeg;base64,")


def test_a_quantized_artifact_is_not_taken_for_the_unquantized_one(
    tiny_checkpoint: Path, mixed_set: CalibrationSet, made: Artifact, tiny_full: Quantized
) -> None:
    """Nor one of another engine; both before anything is measured."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with pytest.raises(ArtifactError, match="has weights in `int4-g32`, `int8-g32`"):
        compare(checkpoint, [made], mixed_set, ONE_THREAD, unquantized=[made])
    with pytest.raises(ArtifactError, match="unquantized quantized, and no artifact"):
        compare(checkpoint, [made], mixed_set, ONE_THREAD, unquantized=[tiny_full.artifact])


def test_samples_that_were_calibrated_on_are_not_measured_on(
    tiny_checkpoint: Path, mixed_set: CalibrationSet, made: Artifact
) -> None:
    """One shared picture is enough; a part held out from the same set is fine, and so is another set."""
    used = CalibrationRecord.of(mixed_set).model_copy(update={"fingerprints": mixed_set.fingerprints[:1]})
    seen = Artifact(made.path, made.manifest.model_copy(update={"calibrated_on": used}))
    with pytest.raises(CalibrationError, match="shares 1 pictures or texts with the calibration set `mixed0`"):
        compare(Checkpoint.open(tiny_checkpoint), [seen], mixed_set, ONE_THREAD)
