"""What is forecast from headers is what is written, to the byte."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
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


def _expected(source: Path, recipe: Recipe, *names: FormatName, context: int = 4096) -> Forecast:
    return forecast(make_plan(Checkpoint.open(source), recipe), names, context)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("phone-int4", "gguf"),
        ("phone-int4", "onnx"),
        ("quality-int4", "gguf"),
        ("full", "gguf"),
        ("full", "onnx"),
        (MIXED, "onnx"),
        ({**MIXED, "vision.*": "q5_0", "vision.layers.1.*": "iq4_nl"}, "gguf"),
        ({"language.*": "int4-g32-asym", "head": "int8-g16-asym", "embedding": "int8-g32-asym"}, "onnx"),
    ],
)
def test_every_file_has_the_size_that_was_forecast(
    tiny_checkpoint: Path, tmp_path: Path, recipe: str | dict[str, str], name: FormatName
) -> None:
    """Headers, padding, alignment, graphs and texts included."""
    asked = Recipe.load(recipe) if isinstance(recipe, str) else Recipe.model_validate({"name": "x", "weights": recipe})

    _compare_with_what_is_written(make_plan(Checkpoint.open(tiny_checkpoint), asked), name, tmp_path)


@pytest.mark.parametrize("family", TINY_FAMILIES, ids=lambda family: family.name)
def test_every_family_has_the_size_that_was_forecast(family: TinyFamily, tmp_path: Path) -> None:
    """In every format that holds it."""
    plan = make_plan(Checkpoint.open(family.build(tmp_path / "tiny")), Recipe.load("phone-int4"))
    held: list[FormatName] = ["gguf", "onnx"]
    names = [name for name in held if name not in dict(plan.checkpoint.family.refusals)]
    quantized = quantize(plan, tmp_path / "codes")

    for layout in forecast(plan, names, 1024).layouts:
        written = export(quantized, layout.name, tmp_path / layout.name).manifest.files
        assert {(file.path, file.component, file.nbytes) for file in layout.files.files} == {
            (record.path, record.component, record.nbytes) for record in written
        }


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_the_reference_has_the_size_that_was_forecast(tmp_path: Path, name: FormatName) -> None:
    """A trained model in several shards."""
    _compare_with_what_is_written(make_plan(Checkpoint.open(REFERENCE), Recipe.load("phone-int4")), name, tmp_path)


def _compare_with_what_is_written(plan: Plan, name: FormatName, tmp_path: Path) -> None:
    [layout] = forecast(plan, [name], 1024).layouts
    written = export(quantize(plan, tmp_path / "codes"), name, tmp_path / name).manifest.files

    assert {(file.path, file.component, file.nbytes) for file in layout.files.files} == {
        (record.path, record.component, record.nbytes) for record in written
    }
    assert sum(weight.nbytes for weight in layout.files.weights) <= layout.nbytes
    assert {weight.name for weight in layout.files.weights} == {step.name for step in plan.steps}


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
def test_hugging_face_artifacts_have_the_size_that_was_forecast(
    tiny_checkpoint: Path, tmp_path: Path, name: FormatName, scheme: str, tolerance: float
) -> None:
    """Shards, their index, and the model card."""
    asked = Recipe.model_validate({"name": "x", "weights": {"language.layers.*": scheme, "head": "keep"}})
    plan = make_plan(Checkpoint.open(tiny_checkpoint), asked)

    [layout] = forecast(plan, [name], 1024).layouts
    written = export(quantize(plan, tmp_path / "codes"), name, tmp_path / "out").manifest.files

    if not tolerance:
        assert {(file.path, file.component, file.nbytes) for file in layout.files.files} == {
            (record.path, record.component, record.nbytes) for record in written
        }
    assert layout.nbytes == pytest.approx(sum(record.nbytes for record in written), rel=tolerance)
    assert layout.seconds is None


def test_calibration_changes_a_forecast_by_what_is_written_of_it(
    tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path
) -> None:
    """The hash of the set stands in the header."""
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.load("calibrated-int4"))
    made = export(quantize(plan, tmp_path / "codes", CalibrationSet.open(tiny_set)), "gguf", tmp_path / "gguf")

    [layout] = forecast(plan, ["gguf"], 1024).layouts

    assert layout.nbytes == sum(made.nbytes_by_component().values())


def test_a_published_model_is_forecast_without_torch(published: Path) -> None:
    """Two formats of a whole model from its headers."""
    code = (
        "import sys; from mcpmq.cli import main\n"
        f"sys.argv = ['mcpmq', 'plan', {str(published)!r}, '--bits', '4', '--format', 'gguf', '-f', 'onnx', '--json']\n"
        "try:\n main()\nexcept SystemExit as stop:\n assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )

    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    expected = json.loads(ran.stdout)["formats"]

    assert 5.2e9 < expected["gguf"]["nbytes"] < expected["onnx"]["nbytes"] < 6e9


def test_what_a_format_forces_is_named_with_the_reason(tiny_checkpoint: Path) -> None:
    """Norms become F32 in GGUF; a hidden width of 144 is widened; scales of a row are repeated."""
    made = _expected(tiny_checkpoint, Recipe.load("phone-int8"), "gguf")
    forced = {weight.name: (weight.stored_as, weight.reason) for weight in made.layouts[0].forced}

    assert forced["language.norm"] == ("F32", "llama.cpp computes with it in F32")
    assert forced["vision.layers.0.mlp.down"] == ("Q8_0", "zeros widen its 144 columns to 160, for whole blocks")
    assert "language.layers.0.mlp.down" not in forced
    assert any("zeros widen its 144 columns" in note for note in made.table().notes)


def test_bits_count_everything_that_a_weight_takes(tiny_checkpoint: Path) -> None:
    """Q8_0 has 34 bytes for 32 weights."""
    made = _expected(tiny_checkpoint, Recipe.load("phone-int8"), "gguf")
    bits = {part["component"]: part["bits"] for part in made.facts()["formats"]["gguf"]["components"]}

    assert bits["head"] == bits["embedding"] == 8.5
    assert bits["language"] > 8.5


def test_a_format_that_cannot_hold_a_plan_is_refused(tiny_checkpoint: Path) -> None:
    """Nothing is forecast that could not be carried out."""
    with pytest.raises(FormatError, match="`onnx` cannot hold"):
        _expected(tiny_checkpoint, Recipe.load("quality-int4"), "onnx")


def test_what_inputs_are_rounded_to_is_forecast_nearly(tiny_checkpoint: Path, tiny_set: Path, tmp_path: Path) -> None:
    """Grids of inputs are told by calibration, and a few bytes of the graph depend on them; nothing else does."""
    weights = {"*": "keep", "vision.*": "int8-row", "projector.*": "int8-row"}
    asked = {"name": "x", "activations": {"vision.*": "u8", "projector.*": "u8"}, "weights": weights}
    plan = make_plan(Checkpoint.open(tiny_checkpoint), Recipe.model_validate(asked))

    [layout] = forecast(plan, ["onnx"], 8).layouts
    made = export(quantize(plan, tmp_path / "codes", CalibrationSet.open(tiny_set)), "onnx", tmp_path / "onnx")
    forecast_sizes = {file.path: file.nbytes for file in layout.files.files}

    for record in made.manifest.files:
        least = 2000 if record.path.endswith("vision_encoder_quantized.onnx") else 0
        assert abs(record.nbytes - forecast_sizes[record.path]) <= least, record.path
    assert layout.nbytes == pytest.approx(sum(made.nbytes_by_component().values()), rel=1e-3)
