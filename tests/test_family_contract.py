"""Every family with everything else: calibration, smoothing, importance, forecasts, Hugging Face formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from PIL import Image

from mcpmq.artifact import Artifact
from mcpmq.calibrate.forward import read_samples
from mcpmq.calibrate.imatrix import LANGUAGE, MMPROJ, imatrix
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.estimate.forecast import forecast
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.formats.hf.constraints import is_linear
from mcpmq.formats.provenance import check_origins
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.report.ablation import _runner
from mcpmq.rounding.smoothing import Scaling, scalings
from mcpmq.runners import gguf, onnx
from mcpmq.runners.onnx import open_runner as open_onnx
from mcpmq.runners.torch import open_runner as open_torch
from mcpmq.runners.transformers import open_runner as open_transformers
from mcpmq.system.progress import silent
from tests.loss_tools import losses_of
from tests.onnx_tools import artifact_of
from tests.smoothing_tools import drawn_scales, scaled_logits
from tests.tiny import make_uneven
from tests.tiny_families import TinyFamily

ENGINES: dict[FormatName, Any] = {"gguf": gguf, "onnx": onnx}
SMOOTH = {
    "name": "smooth",
    "smooth": "awq",
    "round": "gptq",
    "weights": {"*": "int8-g32", "language.*": "int4-g32"},
}


@pytest.fixture(scope="module")
def samples(family_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    """Two questions, and two about images where the family sees: one decides, one judges."""
    folder = tmp_path_factory.mktemp("set")
    answers = ("three circles are there", "red sign")
    lines = [{"id": f"text-{number}", "prompt": "How many?", "answer": one} for number, one in enumerate(answers)]
    for number in range(len(answers)) if family_checkpoint.family.sees else ():
        pixels = np.random.default_rng(number).integers(0, 256, (90, 150 - 90 * number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        asked = {"prompt": "What does the sign say?", "answer": answers[number], "image": f"{number}.png"}
        lines.append({"id": f"image-{number}", **asked})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return CalibrationSet.open(folder)


@pytest.fixture(scope="module")
def plan(tiny_family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Uneven channels, rounded by sight after scales have moved wherever that helps."""
    uneven = make_uneven(tiny_family.build(tmp_path_factory.mktemp("uneven") / "tiny"))
    return make_plan(Checkpoint.open(uneven), Recipe.model_validate(SMOOTH))


@pytest.fixture(scope="module")
def smoothed(plan: Plan, samples: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """The same carried out."""
    return quantize(plan, tmp_path_factory.mktemp("smoothed") / "codes", samples)


@pytest.fixture(scope="module")
def artifacts(smoothed: Quantized, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[FormatName, Artifact]:
    """The same in the formats of engines, where the family is not refused."""
    names: list[FormatName] = [name for name in ENGINES if name not in dict(plan.checkpoint.family.refusals)]
    return {name: export(smoothed, name, tmp_path_factory.mktemp("artifacts") / name) for name in names}


def test_it_is_rounded_by_what_it_sees(plan: Plan, smoothed: Quantized) -> None:
    """Calibrated on images and text every matrix is reached, and scales moved where that helped."""
    rounded = [step.name for step in plan.steps if step.on_a_grid and step.spec.role == "matrix"]
    assert all(smoothed.records[name].tokens for name in rounded)
    assert any(record.smooth for record in smoothed.records.values())


def test_scales_move_and_no_output_changes(plan: Plan, samples: CalibrationSet) -> None:
    """At every place of the family at once; the same scales in the readers alone change everything."""
    inputs = read_samples(plan.checkpoint.family.processor(plan.checkpoint.path), samples.samples, silent)
    scaling = scalings(drawn_scales(plan))
    halves = {name: Scaling(columns=one.columns) for name, one in scaling.items()}

    before, after, spoilt = (scaled_logits(plan, inputs, one) for one in ({}, scaling, halves))

    for one, other, wrong in zip(before, after, spoilt, strict=True):
        assert float((one - other).abs().max()) < 1e-4 * float(one.abs().max())
        assert float((one - wrong).abs().max()) > 0.1 * float(one.abs().max())


def test_scales_that_moved_are_the_same_in_onnx(
    plan: Plan, smoothed: Quantized, samples: CalibrationSet, tmp_path: Path
) -> None:
    """The losses of torch, token by token."""
    inputs = read_samples(plan.checkpoint.family.processor(plan.checkpoint.path), samples.samples, silent)

    expected = np.concatenate(losses_of(open_torch(smoothed.path, 1), inputs))
    taken = np.concatenate(losses_of(open_onnx(artifact_of(smoothed, tmp_path / "onnx"), 1), inputs))

    np.testing.assert_allclose(taken, expected, rtol=0, atol=1e-4)


def test_every_file_has_the_size_that_was_forecast(plan: Plan, artifacts: dict[FormatName, Artifact]) -> None:
    """To the byte, and every weight that is written is told of."""
    for layout in forecast(plan, list(artifacts), 1024).layouts:
        assert {(file.path, file.component, file.nbytes) for file in layout.files.files} == {
            (record.path, record.component, record.nbytes) for record in artifacts[layout.name].manifest.files
        }
        known = {spec.name for spec in plan.checkpoint.family.tensors(plan.checkpoint.architecture)}
        told = {weight.name for weight in layout.files.weights if weight.nbytes}
        assert told >= {name for name in known if not name.startswith("vision.merger.")}
        assert layout.device.sequential <= layout.device.at_once


def test_vision_first_then_language_is_the_same(
    plan: Plan, artifacts: dict[FormatName, Artifact], samples: CalibrationSet
) -> None:
    """To the bit, in both engines; files say where they come from."""
    inputs = read_samples(plan.checkpoint.family.processor(plan.checkpoint.path), samples.samples, silent)
    for name, artifact in artifacts.items():
        engine = ENGINES[name]
        whole = losses_of(engine.open_runner(artifact.path, 1), inputs)
        seen = engine.see_all(artifact.path, 1, inputs)
        in_turn = losses_of(engine.open_reader(artifact.path, 1, seen), inputs)

        assert len(seen) == sum(len(one.slices) for one in inputs)
        np.testing.assert_array_equal(np.concatenate(in_turn), np.concatenate(whole))
        assert check_origins(artifact) == len(dict.fromkeys(_parts(artifact)))


def _parts(artifact: Artifact) -> list[str]:
    return [one.component for one in artifact.manifest.files if one.path.endswith((".gguf", ".onnx"))]


def test_phases_are_timed(plan: Plan, artifacts: dict[FormatName, Artifact], samples: CalibrationSet) -> None:
    """Of the last sample, which has an image where the family sees."""
    inputs = read_samples(plan.checkpoint.family.processor(plan.checkpoint.path), samples.samples, silent)[-1]
    for name, artifact in artifacts.items():
        phases = ENGINES[name].open_runner(artifact.path, 1).phases(inputs)

        assert (phases.encode_seconds_per_slice > 0) == plan.checkpoint.family.sees
        assert phases.decode_tokens_per_second > 0


def test_importance_has_the_names_of_the_gguf_files(
    plan: Plan, artifacts: dict[FormatName, Artifact], samples: CalibrationSet, tmp_path: Path
) -> None:
    """Every matrix in a layer of either file, under its name there."""
    matrices = imatrix(plan.checkpoint, samples, tmp_path / "imatrix")

    assert len(list(matrices.path.glob("*.gguf"))) == 1 + plan.checkpoint.family.sees
    for part in (LANGUAGE, MMPROJ)[: 1 + plan.checkpoint.family.sees] if "gguf" in artifacts else ():
        [held], [seen] = _tensors(artifacts["gguf"], part), _tensors(matrices, part)
        entries = {name.removesuffix(".in_sum2") for name in seen if name.endswith(".in_sum2")}
        assert entries
        assert entries <= held.keys()
        for name in entries:
            assert seen[f"{name}.in_sum2"][0] <= held[name][0], name


def _tensors(artifact: Artifact, part: str) -> list[dict[str, list[int]]]:
    """Shapes by name, columns first."""
    readers = [GGUFReader(file) for file in artifact.files_of(part)]
    return [{tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors} for reader in readers]


def test_any_component_is_quantized_alone(plan: Plan, smoothed: Quantized, samples: CalibrationSet) -> None:
    """Each changes what is said; all together are the quantized model."""
    inputs = read_samples(plan.checkpoint.family.processor(plan.checkpoint.path), samples.samples, silent)
    paths = plan.checkpoint.path, smoothed.path
    original, together = (np.concatenate(losses_of(open_torch(path, 1), inputs)) for path in paths)
    components = frozenset(step.spec.component for step in plan.steps if step.scheme)

    for chosen in (frozenset({one}) for one in components):
        alone = np.concatenate(losses_of(_runner(plan.checkpoint, smoothed, chosen), inputs))
        assert np.abs(alone - original).max() > 1e-5, chosen
    whole = np.concatenate(losses_of(_runner(plan.checkpoint, smoothed, components), inputs))
    np.testing.assert_array_equal(whole, together)


def test_hugging_face_artifacts_are_forecast_and_load(
    family_checkpoint: Checkpoint, samples: CalibrationSet, tmp_path: Path
) -> None:
    """compressed-tensors: in transformers the losses of torch but for bfloat16, and the sizes that were forecast."""
    linear = {spec.name: "int4-g32" for spec in family_checkpoint.specs if is_linear(spec) and _in_language(spec.name)}
    plan = make_plan(family_checkpoint, Recipe.model_validate({"name": "hf", "weights": linear}))
    quantized = quantize(plan, tmp_path / "codes")
    written = export(quantized, "compressed-tensors", tmp_path / "hf")

    [layout] = forecast(plan, ["compressed-tensors"], 1024).layouts
    assert {(file.path, file.nbytes) for file in layout.files.files} == {
        (record.path, record.nbytes) for record in written.manifest.files
    }
    inputs = read_samples(family_checkpoint.family.processor(family_checkpoint.path), samples.samples, silent)
    expected = np.concatenate(losses_of(open_torch(quantized.path, 1), inputs))
    taken = np.concatenate(losses_of(open_transformers(written.path, 1), inputs))
    assert np.abs(taken - expected).max() < 0.1


def _in_language(name: str) -> bool:
    return name.startswith("language.")
