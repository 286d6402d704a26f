"""Forecast file sizes equal those of written artifacts, to the byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.commands import recipe_argument
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import FormatError
from mcpmq.estimate.forecast import Forecast, forecast
from mcpmq.export import export
from mcpmq.formats import FormatName
from mcpmq.plan import Plan, make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from tests.tiny_families import TINY_FAMILIES, TinyFamily

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "calibration" / "reference"
MIXED = {
    "*": "keep",
    "language.*.attention.*": "int4-row",
    "language.*.mlp.*": "int8-g64",
    "language.layers.1.mlp.up": "f16",
    "vision.*": "int8-row",
    "vision.layers.1.*": "int8-g32",
    "embedding": "bf16",
    "projector.*": "int4-g128",
    "projector.out": "f32",
}


def _forecast(source: Path, recipe: Recipe, *names: FormatName, context: int = 4096) -> Forecast:
    return forecast(make_plan(Checkpoint.open(source), recipe), names, context)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("phone-int4", "gguf"),
        ("phone-int4", "onnx"),
        (recipe_argument("quality-int4"), "gguf"),
        ("full", "gguf"),
        ("full", "onnx"),
        (MIXED, "onnx"),
        ({**MIXED, "vision.*": "q5_0", "vision.layers.1.*": "iq4_nl"}, "gguf"),
        ({"language.*": "int4-g32-asym", "head": "int8-g16-asym", "embedding": "int8-g32-asym"}, "onnx"),
    ],
)
def test_every_file_has_its_forecast_size(
    tiny_checkpoint: Path, tmp_path: Path, recipe: str | dict[str, str], name: FormatName
) -> None:
    """Forecasts include headers, padding, alignment, graphs and text files."""
    loaded = Recipe.load(recipe) if isinstance(recipe, str) else Recipe.model_validate({"name": "x", "weights": recipe})

    _check_written_files(make_plan(Checkpoint.open(tiny_checkpoint), loaded), name, tmp_path)


@pytest.mark.parametrize("family", TINY_FAMILIES, ids=lambda family: family.name)
def test_every_family_has_its_forecast_size(family: TinyFamily, tmp_path: Path) -> None:
    """This holds for GGUF and ONNX where the family supports them."""
    plan = make_plan(Checkpoint.open(family.build(tmp_path / "tiny")), Recipe.load("phone-int4"))
    formats: list[FormatName] = ["gguf", "onnx"]
    names = [name for name in formats if name not in dict(plan.checkpoint.family.unsupported_formats)]
    quantized = quantize(plan, tmp_path / "codes")

    for estimate in forecast(plan, names, 1024).formats:
        written = export(quantized, estimate.name, tmp_path / estimate.name).manifest.files
        assert {(file.path, file.component, file.nbytes) for file in estimate.files.files} == {
            (record.path, record.component, record.nbytes) for record in written
        }


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_the_reference_checkpoint_has_its_forecast_size(tmp_path: Path, name: FormatName) -> None:
    """This holds for a trained checkpoint with several shards."""
    _check_written_files(make_plan(Checkpoint.open(REFERENCE), Recipe.load("phone-int4")), name, tmp_path)


def _check_written_files(plan: Plan, name: FormatName, tmp_path: Path) -> None:
    [estimate] = forecast(plan, [name], 1024).formats
    written = export(quantize(plan, tmp_path / "codes"), name, tmp_path / name).manifest.files

    assert {(file.path, file.component, file.nbytes) for file in estimate.files.files} == {
        (record.path, record.component, record.nbytes) for record in written
    }
    assert sum(weight.nbytes for weight in estimate.files.weights) <= estimate.nbytes
    assert {weight.name for weight in estimate.files.weights} == {tensor.name for tensor in plan.tensors}


@pytest.mark.parametrize(
    ("name", "scheme", "tolerance"),
    [
        ("gptq", "int4-g32", 0),
        ("gptq", "int8-row", 0),
        ("awq", "int4-g64-asym", 0),
        ("bnb", "int8-row", 0),
        ("bnb", "nf4", 1e-3),  # digits of a number in a text
        ("compressed-tensors", "int4-g32", 0),
    ],
)
def test_hugging_face_artifacts_have_their_forecast_size(
    tiny_checkpoint: Path, tmp_path: Path, name: FormatName, scheme: str, tolerance: float
) -> None:
    """Forecasts include shards, their index and the model card."""
    recipe = Recipe.model_validate({"name": "x", "weights": {"language.layers.*": scheme, "head": "keep"}})
    plan = make_plan(Checkpoint.open(tiny_checkpoint), recipe)

    [estimate] = forecast(plan, [name], 1024).formats
    written = export(quantize(plan, tmp_path / "codes"), name, tmp_path / "out").manifest.files

    if not tolerance:
        assert {(file.path, file.component, file.nbytes) for file in estimate.files.files} == {
            (record.path, record.component, record.nbytes) for record in written
        }
    assert estimate.nbytes == pytest.approx(sum(record.nbytes for record in written), rel=tolerance)
    assert estimate.export_seconds is None


def test_a_forecast_includes_the_calibration_record(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """The header of a calibrated GGUF file contains the hash of the calibration set."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-int4"))
    artifact = export(quantize(plan, tmp_path / "codes", SampleSet.open(tiny_set)), "gguf", tmp_path / "gguf")

    [estimate] = forecast(plan, ["gguf"], 1024).formats

    assert estimate.nbytes == sum(artifact.nbytes_by_component().values())


def test_a_forecast_does_not_import_torch(published: Path) -> None:
    """Two formats of a published model are forecast from its headers."""
    code = (
        "import sys; from mcpmq.cli import main\n"
        f"sys.argv = ['mcpmq', 'plan', {str(published)!r}, '--bits', '4', '--format', 'gguf', '-f', 'onnx', '--json']\n"
        "try:\n main()\nexcept SystemExit as stop:\n assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )

    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    nbytes = [entry["nbytes"] for plan in json.loads(process.stdout) for entry in plan["formats"].values()]

    assert 5.2e9 < nbytes[0] < nbytes[1] < 6e9


def test_types_that_differ_from_the_plan_have_a_reason(tiny_checkpoint: Path) -> None:
    """In GGUF norms are F32 and 144 columns are padded; other weights have no reason."""
    result = _forecast(tiny_checkpoint, Recipe.load("phone-int8"), "gguf")
    overridden = {weight.name: (weight.stored_as, weight.reason) for weight in result.formats[0].overridden}

    assert overridden["language.norm"] == ("F32", "llama.cpp computes with it in F32")
    reason = "144 columns are zero-padded to 160, a multiple of the block size"
    assert overridden["vision.layers.0.mlp.down"] == ("Q8_0", reason)
    assert "language.layers.0.mlp.down" not in overridden
    assert any("144 columns are zero-padded" in note for note in result.to_table().notes)


def test_bits_per_weight_include_scales(tiny_checkpoint: Path) -> None:
    """Q8_0 has 34 bytes for 32 weights, which is 8.5 bits per weight."""
    result = _forecast(tiny_checkpoint, Recipe.load("phone-int8"), "gguf")
    bits = {part["component"]: part["bits_per_weight"] for part in result.to_dict()["formats"]["gguf"]["components"]}

    assert bits["head"] == bits["embedding"] == 8.5
    assert bits["language"] > 8.5


def test_an_unsupported_plan_is_an_error(tiny_checkpoint: Path) -> None:
    """A forecast of a scheme that the format does not support is an error."""
    with pytest.raises(FormatError, match="`onnx` cannot store"):
        _forecast(tiny_checkpoint, Recipe.load("calibrated-quality-int4"), "onnx")


def test_sizes_with_quantized_activations_are_nearly_exact(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """Activation grids are unknown before calibration, and only the graph of the vision encoder depends on them."""
    weights = {"*": "keep", "vision.*": "int8-row", "projector.*": "int8-row"}
    recipe = {"name": "x", "activations": {"vision.*": "u8", "projector.*": "u8"}, "weights": weights}
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(recipe))

    [estimate] = forecast(plan, ["onnx"], 8).formats
    artifact = export(quantize(plan, tmp_path / "codes", SampleSet.open(tiny_set)), "onnx", tmp_path / "onnx")
    forecast_sizes = {file.path: file.nbytes for file in estimate.files.files}

    for record in artifact.manifest.files:
        tolerance = 2000 if record.path.endswith("vision_encoder_quantized.onnx") else 0
        assert abs(record.nbytes - forecast_sizes[record.path]) <= tolerance, record.path
    assert estimate.nbytes == pytest.approx(sum(artifact.nbytes_by_component().values()), rel=1e-3)
