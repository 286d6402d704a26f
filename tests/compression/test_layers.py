"""A checkpoint without layers is the original with these layers bypassed, in all formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compress, remove_layers
from mcpmq.compression.layers import layer_counts, required_layers, without_layers
from mcpmq.compression_tables import LayersTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import FormatError, RecipeError
from mcpmq.estimate.forecast import forecast
from mcpmq.evaluate import Settings, encode_samples, measure
from mcpmq.export import export
from mcpmq.families.blocks import block_name
from mcpmq.families.inputs import Inputs
from mcpmq.formats import FormatName
from mcpmq.mixed_precision.layer_removal import measure_removal
from mcpmq.one_pass import convert_in_one_pass
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.recipe import Recipe
from mcpmq.runners.torch import TorchRunner, open_checkpoint
from mcpmq.system.progress import silent
from tests.commands import Command
from tests.tiny_families import TINY_FAMILIES

BY_NAME = {family.name: family for family in TINY_FAMILIES}


def table_for(*layers: str) -> LayersTable:
    """Return a table with measured values."""
    influence = tuple(0.25 for _ in layers)
    return LayersTable(remove=layers, influence=influence, kl_divergence=0.5, answer_tokens=7, calibration="tiny")


def encode(checkpoint: Checkpoint, image: Path) -> list[Inputs]:
    """Encode a text, and an image where the family has vision."""
    processor, images = checkpoint.family.open_processor(checkpoint.path), [image] * checkpoint.family.has_vision
    return [processor.encode(str(one), one, "7 + 1 ?", "8 !") for one in (None, *images)]


def logits_of(runner: TorchRunner, samples: list[Inputs]) -> list[NDArray[np.float32]]:
    """Return the logits of the answer tokens of every sample: float32 [tokens, vocab_size]."""
    return list(runner.run(samples, lambda _, rows: np.stack([row.copy() for row in rows])))


def bypass(runner: TorchRunner, layers: list[str]) -> TorchRunner:
    """Let layers of a model return their input."""
    for block, parameters in runner.model.blocks.items():
        if block_name(next(iter(parameters.values())).name) in layers:
            block.register_forward_hook(_input_of, with_kwargs=True)
    return runner


def _input_of(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    before = next(one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor))
    return (before, *output[1:]) if isinstance(output, tuple) else before


def removable_layers(checkpoint: Checkpoint) -> list[str]:
    """Return the first layer that can be removed of every component with several layers."""
    required, counts = required_layers(checkpoint.architecture), layer_counts(checkpoint.architecture)
    found = {
        component: [f"{component}.layers.{number}" for number in range(count)]
        for component, count in counts.items()
        if count > 1
    }
    return [next(name for name in names if name not in required) for names in found.values()]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that families cut into slices."""
    file = tmp_path_factory.mktemp("image") / "wide.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 100, 3), np.uint8)).save(file)
    return file


def test_every_family_has_the_logits_of_bypassed_layers(family_checkpoint: Checkpoint, image: Path) -> None:
    """Kept layers are renumbered with their kinds, and indices of layers and factors of residuals fit to them."""
    removed = removable_layers(family_checkpoint)
    samples = encode(family_checkpoint, image)
    expected = logits_of(bypass(open_checkpoint(family_checkpoint, 1), removed), samples)
    with without_layers(family_checkpoint, removed) as view:
        assert layer_counts(view.architecture) == {
            component: count - sum(name.startswith(component) for name in removed)
            for component, count in layer_counts(family_checkpoint.architecture).items()
        }
        found = logits_of(open_checkpoint(view, 1), encode(view, image))
        assert view.sha256 == family_checkpoint.sha256
        assert view.nbytes < view.source.nbytes
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


HYBRID = "minicpm-v-4.6"  # has one language layer of each kind
FORMATS: list[tuple[str, FormatName, str]] = [
    ("minicpm-v-2.6", "gguf", "full"),
    ("minicpm-v-2.0", "gguf", "full"),
    (HYBRID, "gguf", "full"),
    ("qwen2-vl", "onnx", "full"),
    ("qwen2-vl", "compressed-tensors", "language-int8"),
    ("qwen2-vl", "mlx", "mlx-int8"),
]


@pytest.mark.parametrize(("family", "name", "recipe"), FORMATS)
def test_every_format_has_its_forecast_size_and_the_layers(
    family: str, name: FormatName, recipe: str, tmp_path: Path, tiny_set: Path
) -> None:
    """Files have the forecast bytes, engines load them with the result of PyTorch, and records name the layers."""
    checkpoint = Checkpoint.open(BY_NAME[family].build(tmp_path / "tiny"))
    removed = removable_layers(checkpoint)
    table = table_for(*(one for one in removed if family != HYBRID or one.startswith("vision")))
    loaded = Recipe.load(recipe).model_copy(update={"layers": table})
    with compress(checkpoint, loaded) as view:
        plan = make_plan(view, loaded)
        [estimate] = forecast(plan, [name], 1024).formats
        artifact = convert_in_one_pass(plan, name, tmp_path / name)
        quantized = quantize(plan, tmp_path / "quantized")
    written = {(one.path, one.nbytes) for one in artifact.manifest.files}
    assert {(one.path, one.nbytes) for one in estimate.files.files} == written
    assert artifact.manifest.layers == table
    assert f"layers: {table}" in artifact.manifest.notes
    if name == "compressed-tensors":
        card = (artifact.path / "README.md").read_text()
        assert "lacks 2 layers of the original" in card
        assert "| language.layers.0 | 0.2500 |" in card
    if name in ("gguf", "onnx"):
        settings = Settings.from_options(threads=1, use_cache=False)
        with encode_samples(checkpoint, SampleSet.open(tiny_set), settings) as inputs:
            reference = {"quantized": tmp_path / "logprobs"}
            measure(quantized.artifact, inputs, settings, save_logprobs=reference["quantized"])
            measured = measure(export(quantized, name, tmp_path / name), inputs, settings, reference)
        layers = layer_counts(checkpoint.architecture)["language"]
        kept = layers - sum(one.startswith("language") for one in table.remove)
        nbytes = {"gguf": 2, "onnx": 4}[name] * sum(inputs.cached_per_token)
        assert measured.kv_cache_bytes_per_token == nbytes * kept // layers
        assert max(max(one.compared["quantized"].kl_divergences) for one in measured.samples) < 2e-3


def test_layers_that_others_depend_on_stay(tmp_path: Path) -> None:
    """A missing layer, all layers, and those with DeepStack features or a merger after them are errors."""
    deepstack = Checkpoint.open(BY_NAME["qwen3-vl"].build(tmp_path / "deepstack"))
    merger = Checkpoint.open(BY_NAME["minicpm-v-4.6"].build(tmp_path / "merger"))
    _check_error(deepstack, "image features are added after it", "language.layers.0")
    _check_error(merger, "a merger follows it", f"vision.layers.{merger.architecture.required_vision.merger_layer}")
    _check_error(merger, "does not exist: the component has 2 layers", "language.layers.7")
    _check_error(merger, "removes all layers of `language`", "language.layers.0", "language.layers.1")
    full = Recipe.load("full").model_copy(update={"layers": table_for("language.layers.0")})
    with compress(merger, full) as view, pytest.raises(FormatError, match="0 of 1 layers have linear attention"):
        forecast(make_plan(view, full), ["gguf"], 1024)
    with pytest.raises(RecipeError, match=r"has without language.layers.0; .*, the checkpoint all layers"):
        make_plan(merger, Recipe.load("full").model_copy(update={"layers": table_for("language.layers.0")}))


def _check_error(checkpoint: Checkpoint, message: str, *layers: str) -> None:
    with pytest.raises(RecipeError, match=message), remove_layers(checkpoint, table_for(*layers)):
        pass


@pytest.fixture
def idle_layer(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint whose second language layer adds zeros to its input."""
    folder = tmp_path / "idle"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        weights = load_file(file)
        for name in weights:
            if ".layers.1." in name and name.endswith(("o_proj.weight", "down_proj.weight")) and "vpm" not in name:
                weights[name] = torch.zeros_like(weights[name])
        save_file(weights, folder / file.name)
    return folder


def test_a_layer_without_influence_is_removed_first(idle_layer: Path, tiny_set: Path, mcpmq: Command) -> None:
    """It has an influence and a KLD of about 0, and `mcpmq layers` writes the recipe that removes it."""
    checkpoint, samples = Checkpoint.open(idle_layer), SampleSet.open(tiny_set)
    found = measure_removal(checkpoint, "language", 1, samples, 1, silent)
    assert found.steps[0].layers == ("language.layers.1",)
    assert found.influences["language.layers.1"] < 1e-5 < 1e-3 < found.influences["language.layers.0"]
    assert found.divergences["language.layers.1"] < 1e-6 < found.divergences["language.layers.0"]
    with pytest.raises(RecipeError, match="2 of 2 layers of `language` cannot be removed"):
        measure_removal(checkpoint, "language", 2, samples, 1, silent)

    file = idle_layer.with_name("shorter.toml")
    command = ("layers", idle_layer, file, "--calibration", tiny_set, "--remove", "1", "--recipe", "phone-int8")
    printed = json.loads(mcpmq(*command, "--json").stdout)
    assert printed["steps"][0]["layers"] == ["language.layers.1"]
    recipe = Recipe.load(str(file))
    assert recipe.layers == found.table
    assert recipe.name == "phone-int8-without-1-language-layers"
    plans = mcpmq("plan", idle_layer, "--recipe", file, "--format", "gguf", "--json")
    assert not [one for one in json.loads(plans.stdout)["weights"] if one["name"].startswith("language.layers.1")]
