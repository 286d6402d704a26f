"""All families with calibration, smoothing, imatrix, estimates, ablation and Hugging Face formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.calibrate.forward import encode_samples
from mcpmq.calibrate.imatrix import LANGUAGE, MMPROJ, write_imatrix
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.estimate.forecast import forecast
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.formats.hf.constraints import is_linear
from mcpmq.formats.provenance import check_provenance
from mcpmq.formats.support import no_audio_reason
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.report.ablation import _runner
from mcpmq.rounding.smoothing import WeightScaling, weight_scalings
from mcpmq.runners import gguf, onnx
from mcpmq.runners.onnx import open_runner as open_onnx
from mcpmq.runners.torch import open_runner as open_torch
from mcpmq.runners.transformers import open_runner as open_transformers
from mcpmq.system.progress import silent
from tests.audio_tools import write_wav
from tests.loss_tools import answer_losses
from tests.onnx_tools import write_onnx_artifact
from tests.smoothing_tools import few_exponents, random_scales, scaled_logits
from tests.tiny import make_uneven
from tests.tiny_families import TinyFamily

ENGINES: dict[FormatName, Any] = {"gguf": gguf, "onnx": onnx}
SMOOTH = {
    "name": "smooth",
    "smooth": "awq",
    "method": "gptq",
    "targets": "model",
    "weights": {"*": "int8-g32", "language.*": "int4-g32"},
}


@pytest.fixture(scope="module")
def samples(family_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    """Two text samples, and two samples for each encoder of the family, so that one can be held out."""
    folder = tmp_path_factory.mktemp("set")
    answers = ("three circles are there", "red sign")
    lines = [{"id": f"text-{number}", "prompt": "How many?", "answer": answer} for number, answer in enumerate(answers)]
    for number in range(len(answers)) if family_checkpoint.family.has_vision else ():
        pixels = np.random.default_rng(number).integers(0, 256, (90, 150 - 90 * number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        fields = {"prompt": "What does the sign say?", "answer": answers[number], "image": f"{number}.png"}
        lines.append({"id": f"image-{number}", **fields})
    for number in range(len(answers)) if family_checkpoint.family.has_audio else ():
        write_wav(folder / f"{number}.wav", 1.3 + number, seed=number)
        fields = {"prompt": "How many circles?", "answer": answers[number], "audio": f"{number}.wav"}
        lines.append({"id": f"audio-{number}", **fields})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return SampleSet.open(folder)


@pytest.fixture(scope="module")
def plan(tiny_family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Plan with AWQ and GPTQ for a checkpoint with outlier channels."""
    uneven = make_uneven(tiny_family.build(tmp_path_factory.mktemp("uneven") / "tiny"))
    return make_plan(Checkpoint.open(uneven), Recipe.model_validate(SMOOTH))


@pytest.fixture(scope="module")
def smoothed(plan: Plan, samples: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The quantized model of the plan."""
    with few_exponents():
        return quantize(plan, tmp_path_factory.mktemp("smoothed") / "codes", samples)


@pytest.fixture(scope="module")
def artifacts(
    smoothed: QuantizedModel, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> dict[FormatName, Artifact]:
    """The quantized model in each GGUF and ONNX format that supports the family."""
    names: list[FormatName] = [name for name in ENGINES if name not in dict(plan.checkpoint.family.unsupported_formats)]
    return {name: export(smoothed, name, tmp_path_factory.mktemp("artifacts") / name) for name in names}


def test_calibration_reaches_all_quantized_matrices(plan: Plan, smoothed: QuantizedModel) -> None:
    """Each quantized matrix has calibration tokens, and smoothing is applied to at least one weight."""
    rounded = [tensor.name for tensor in plan.tensors if tensor.is_quantized and tensor.spec.role == "matrix"]
    assert all(smoothed.records[name].calibration_tokens for name in rounded)
    assert any(record.smoothing_exponent for record in smoothed.records.values())


def test_smoothing_does_not_change_the_logits(plan: Plan, samples: SampleSet) -> None:
    """Random scales in all mappings keep the logits; the same scales in the balance layers alone change them."""
    inputs = encode_samples(plan.checkpoint.family.open_processor(plan.checkpoint.path), samples.samples, silent)
    scaling = weight_scalings(random_scales(plan))
    columns_only = {name: WeightScaling(column_scale=weight.column_scale) for name, weight in scaling.items()}

    original, smoothed, unbalanced = (scaled_logits(plan, inputs, chosen) for chosen in ({}, scaling, columns_only))

    for expected, equal, different in zip(original, smoothed, unbalanced, strict=True):
        assert float((expected - equal).abs().max()) < 1e-4 * float(expected.abs().max())
        assert float((expected - different).abs().max()) > 0.1 * float(expected.abs().max())


def test_a_smoothed_model_has_the_same_losses_in_onnx(
    plan: Plan, smoothed: QuantizedModel, samples: SampleSet, tmp_path: Path
) -> None:
    """The loss of each answer token agrees with torch."""
    inputs = encode_samples(plan.checkpoint.family.open_processor(plan.checkpoint.path), samples.samples, silent)

    expected = np.concatenate(answer_losses(open_torch(smoothed.path, 1), inputs))
    losses = np.concatenate(answer_losses(open_onnx(write_onnx_artifact(smoothed, tmp_path / "onnx"), 1), inputs))

    np.testing.assert_allclose(losses, expected, rtol=3e-5, atol=1e-5)  # losses of random weights are up to 20


def test_the_forecast_is_exact(plan: Plan, artifacts: dict[FormatName, Artifact]) -> None:
    """File sizes are equal to the byte, all weights are listed, sequential memory is at most concurrent memory."""
    for layout in forecast(plan, list(artifacts), 1024).formats:
        assert {(file.path, file.component, file.nbytes) for file in layout.files.files} == {
            (record.path, record.component, record.nbytes) for record in artifacts[layout.name].manifest.files
        }
        family, unused = plan.checkpoint.family, ["vision.merger.", "audio.unused_tokens"]
        unused += ["audio.", "audio_projector."] if no_audio_reason(family, layout.name, {}) else []
        known = {spec.name for spec in family.tensor_specs(plan.checkpoint.architecture)}
        listed = {weight.name for weight in layout.files.weights if weight.nbytes}
        assert listed >= {name for name in known if not name.startswith(tuple(unused))}
        assert layout.device.sequential_nbytes <= layout.device.concurrent_nbytes


def test_sequential_vision_and_language_give_the_same_losses(
    plan: Plan, artifacts: dict[FormatName, Artifact], samples: SampleSet
) -> None:
    """Encoding all images first gives identical losses in both engines; provenance records are valid."""
    encoded = encode_samples(plan.checkpoint.family.open_processor(plan.checkpoint.path), samples.samples, silent)
    for name, artifact in artifacts.items():
        engine, without_audio = ENGINES[name], no_audio_reason(plan.checkpoint.family, name, {})
        inputs = [one for one in encoded if not (one.audio and without_audio)]
        concurrent = answer_losses(engine.open_runner(artifact.path, 1), inputs)
        features = engine.encode_images(artifact.path, 1, inputs)
        sequential = answer_losses(engine.open_language_model(artifact.path, 1, features), inputs)

        assert len(features) == sum(len(sample.slices) + len(sample.audio) for sample in inputs)
        np.testing.assert_array_equal(np.concatenate(sequential), np.concatenate(concurrent))
        assert check_provenance(artifact) == len(_recorded(artifact))


def _recorded(artifact: Artifact) -> set[str]:
    """Return the graphs, and the components of GGUF files, of which the first part has the metadata."""
    paths = {file.path: file.component for file in artifact.manifest.files if file.path.endswith((".gguf", ".onnx"))}
    return {path if path.endswith(".onnx") else component for path, component in paths.items()}


def test_phases_are_timed(plan: Plan, artifacts: dict[FormatName, Artifact], samples: SampleSet) -> None:
    """Prefill and decode are timed, and image encoding for families with vision."""
    encoded = encode_samples(plan.checkpoint.family.open_processor(plan.checkpoint.path), samples.samples, silent)
    inputs = max(encoded, key=lambda sample: len(sample.slices))
    for name, artifact in artifacts.items():
        phases = ENGINES[name].open_runner(artifact.path, 1).time_phases(inputs)

        assert (phases.encode_seconds_per_slice > 0) == plan.checkpoint.family.has_vision
        assert phases.decode_tokens_per_second > 0


def test_imatrix_entries_match_the_gguf_tensors(
    plan: Plan, artifacts: dict[FormatName, Artifact], samples: SampleSet, tmp_path: Path
) -> None:
    """Each imatrix entry has the name and at most the columns of a tensor in the GGUF file of its component.

    The audio encoder of MiniCPM-o is in the file on request only.
    """
    matrices = write_imatrix(plan.checkpoint, samples, tmp_path / "imatrix")

    assert len(list(matrices.path.glob("*.gguf"))) == 1 + plan.checkpoint.family.has_vision
    for part in (LANGUAGE, MMPROJ)[: 1 + plan.checkpoint.family.has_vision] if "gguf" in artifacts else ():
        [tensors], [statistics] = _tensors(artifacts["gguf"], part), _tensors(matrices, part)
        entries = {name.removesuffix(".in_sum2") for name in statistics if name.endswith(".in_sum2")}
        if plan.checkpoint.family.name == "minicpm-o-2.6":
            entries = {name for name in entries if not name.startswith(("a.", "mm.a."))}
        assert entries
        assert entries <= tensors.keys()
        for name in entries:
            assert statistics[f"{name}.in_sum2"][0] <= tensors[name][0], name


def _tensors(artifact: Artifact, part: str) -> list[dict[str, list[int]]]:
    """Return tensor shapes by name, columns first."""
    readers = [GGUFReader(file) for file in artifact.component_files(part)]
    return [{tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors} for reader in readers]


def test_each_component_can_be_quantized_alone(plan: Plan, smoothed: QuantizedModel, samples: SampleSet) -> None:
    """Each component alone changes the losses; all components together equal the quantized model."""
    inputs = encode_samples(plan.checkpoint.family.open_processor(plan.checkpoint.path), samples.samples, silent)
    paths = plan.checkpoint.path, smoothed.path
    original, together = (np.concatenate(answer_losses(open_torch(path, 1), inputs)) for path in paths)
    components = frozenset(tensor.spec.component for tensor in plan.tensors if tensor.scheme)

    for chosen in (frozenset({component}) for component in components):
        alone = np.concatenate(answer_losses(_runner(plan.checkpoint, smoothed, chosen), inputs))
        assert np.abs(alone - original).max() > 1e-5, chosen
    all_components = np.concatenate(answer_losses(_runner(plan.checkpoint, smoothed, components), inputs))
    np.testing.assert_array_equal(all_components, together)


def test_hugging_face_artifacts_load_and_their_forecast_is_exact(
    family_checkpoint: Checkpoint, samples: SampleSet, tmp_path: Path
) -> None:
    """A compressed-tensors artifact has the forecast file sizes, and in transformers about the losses of torch."""
    linear = {spec.name: "int4-g32" for spec in family_checkpoint.specs if is_linear(spec) and _in_language(spec.name)}
    plan = make_plan(family_checkpoint, Recipe.model_validate({"name": "hf", "weights": linear}))
    quantized = quantize(plan, tmp_path / "codes")
    written = export(quantized, "compressed-tensors", tmp_path / "hf")

    [layout] = forecast(plan, ["compressed-tensors"], 1024).formats
    assert {(file.path, file.nbytes) for file in layout.files.files} == {
        (record.path, record.nbytes) for record in written.manifest.files
    }
    inputs = encode_samples(family_checkpoint.family.open_processor(family_checkpoint.path), samples.samples, silent)
    expected = np.concatenate(answer_losses(open_torch(quantized.path, 1), inputs))
    losses = np.concatenate(answer_losses(open_transformers(written.path, 1), inputs))
    assert np.abs(losses - expected).max() < 0.1


def _in_language(name: str) -> bool:
    return name.startswith("language.")
