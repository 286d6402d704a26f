"""All families in all engines: the same tokens and pixels give the losses of torch."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers.activations import GELUTanh

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn, Video
from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.families.family import Family, Processor, TensorSpec
from mcpmq.families.inputs import Inputs
from mcpmq.families.messages import Message
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration
from mcpmq.families.modeling_minicpmv2 import PatchEmbedding
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.generation import generate
from mcpmq.runners.gguf import open_runner as open_gguf
from mcpmq.runners.llamacpp import llamacpp
from mcpmq.runners.llamacpp.language import LanguageModel
from mcpmq.runners.onnx import OnnxRunner
from mcpmq.runners.onnx import open_runner as open_onnx
from mcpmq.runners.torch import open_runner as open_torch
from tests.gguf_tools import export_gguf, llama_cpp_gelu, llama_cpp_positions, llama_cpp_tokens, llama_cpp_weights
from tests.loss_tools import answer_losses
from tests.onnx_tools import write_onnx_artifact
from tests.reference_model import greedy_tokens, reference_model
from tests.tiny_families import TinyFamily


@pytest.fixture(scope="module")
def full(family_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """Unquantized model."""
    return quantize(make_plan(family_checkpoint, Recipe.load("full")), tmp_path_factory.mktemp("quantized") / "full")


@pytest.fixture(scope="module")
def samples(family_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Inputs]:
    """A text sample; for families with vision a wide and a tall image, a conversation with both, and with a video."""
    processor = family_checkpoint.family.open_processor(family_checkpoint.path)
    folder = tmp_path_factory.mktemp("images")
    encoded = [processor.encode("text", None, "How many?", "three circles are there")]
    for width, height in ((150, 90), (60, 200)) if family_checkpoint.family.has_vision else ():
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}.png")
        encoded.append(processor.encode(f"image-{width}", folder / f"{width}.png", "What does it say?", "red sign"))
    images = [folder / "150.png", folder / "60.png"] if family_checkpoint.family.has_vision else []
    system = [Turn("system", ("Be brief.",))] if family_checkpoint.family.prompt_format.has_system_prompt else []
    first = [Turn("user", ("Here", *images[:1], "and here:", *images[1:])), Turn("assistant", ("two signs",))]
    second = [Turn("user", (*images[1:], "How many?")), Turn("assistant", ("one is red",))]
    encoded.append(processor.encode_turns("chat", [*system, *first, *second]))
    if family_checkpoint.family.has_vision and family_checkpoint.family.prompt_format.supports_video:
        moving = [Turn("user", ("Before", _video(folder), *images[:1], "and?")), Turn("assistant", ("it moves",))]
        encoded.append(processor.encode_turns("video", [*system, *moving, *second]))
    return encoded


def _video(folder: Path) -> Video:
    """Return a video of five random frames, six a second; its times are not after those of llama.cpp's limit."""
    frames = np.random.default_rng(5).integers(0, 256, (5, 70, 100, 3), np.uint8)
    files = tuple(folder / f"frame-{number}.png" for number in range(len(frames)))
    for file, pixels in zip(files, frames, strict=True):
        Image.fromarray(pixels).save(file)
    return Video(files, fps=6.0)


@pytest.fixture(scope="module")
def expected(family_checkpoint: Checkpoint, samples: list[Inputs]) -> np.ndarray:
    """Losses of the original in torch."""
    return np.concatenate(list(answer_losses(open_torch(family_checkpoint.path, 1), samples)))


def test_the_configuration_selects_the_family(tiny_family: TinyFamily, family_checkpoint: Checkpoint) -> None:
    """The checkpoint is opened as the family it was built for."""
    assert family_checkpoint.family.name == tiny_family.name


@pytest.fixture(scope="module")
def onnx(full: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    """Unquantized model in ONNX Runtime."""
    return open_onnx(write_onnx_artifact(full, tmp_path_factory.mktemp("onnx") / "full"), 1)


def test_onnx_has_the_losses_of_torch(onnx: OnnxRunner, samples: list[Inputs], expected: np.ndarray) -> None:
    """The losses of text and image samples agree."""
    losses = np.concatenate(list(answer_losses(onnx, samples)))

    np.testing.assert_allclose(losses, expected, rtol=0, atol=2e-5)


def test_graph_inputs_are_those_of_transformers_js(tiny_family: TinyFamily, onnx: OnnxRunner) -> None:
    """The decoder reads embeddings, mask, positions and KV cache; the vision graph of Qwen-VL patches and their grid.

    The name of the grid input differs between Qwen2-VL and later versions.
    """
    inputs = {node.name for node in onnx.decoder.get_inputs() if not node.name.startswith("past_")}
    assert inputs == {"inputs_embeds", "attention_mask", "position_ids", "num_logits_to_keep"}
    if tiny_family.name.startswith("qwen"):
        grid = "grid_thw" if tiny_family.name == "qwen2-vl" else "image_grid_thw"
        assert {node.name for node in onnx.vision.get_inputs()} == {"pixel_values", grid}
        assert [node.name for node in onnx.vision.get_outputs()] == ["image_features"]
    if tiny_family.name == "smolvlm2":
        assert {node.name for node in onnx.vision.get_inputs()} == {"pixel_values", "pixel_attention_mask"}


def test_gguf_has_the_losses_of_torch(
    tiny_family: TinyFamily,
    full: QuantizedModel,
    samples: list[Inputs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The losses of text and image samples agree; image samples differ by llama.cpp's GELU in F16.

    Torch computes as llama.cpp where a caveat of the family applies: position embeddings by row and column or from the
    nearest cell, norms with an epsilon of 0, the GELU of language models in F16.
    """
    monkeypatch.setattr(MiniCPMVForConditionalGeneration, "position_grid_sizes", lambda _, sizes: sizes)
    monkeypatch.setattr(PatchEmbedding, "position_embeddings", llama_cpp_positions)
    if full.architecture.vision and full.architecture.vision.flat_positions:
        monkeypatch.setattr("mcpmq.runners.torch.to_float", llama_cpp_weights)
    if full.architecture.language.activation == "gelu":
        monkeypatch.setattr(GELUTanh, "forward", llama_cpp_gelu)
    expected = np.concatenate(
        list(answer_losses(open_torch(_with(full, tmp_path, tiny_family.llama_cpp_config), 1), samples))
    )
    if "gguf" in dict(family_named(tiny_family.name).unsupported_formats):
        with pytest.raises(FormatError, match=tiny_family.name):
            export_gguf(full, tmp_path)
        return
    runner = open_gguf(export_gguf(full, tmp_path).path, 1, f32_attention=True)
    text = len(samples[0].tokens) - samples[0].answer_start
    difference = np.abs(np.concatenate(list(answer_losses(runner, samples))) - expected)

    assert runner.notes == ()
    rounds_text = full.architecture.language.activation == "gelu"  # at other ties than torch does
    assert difference[:text].max() < (5e-4 if rounds_text else 2e-5)
    assert difference.max() < 1e-3


def _with(full: QuantizedModel, folder: Path, keys: Mapping[str, Any]) -> Path:
    """Copy the model with changed keys in config.json."""
    copy = shutil.copytree(full.path, folder / "changed")
    (copy / "config.json").write_text(json.dumps(_merged(full.config, keys)))
    return copy


def _merged(config: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with changed keys, also of its inner objects."""
    changed = {key: _merged(config[key], value) if isinstance(value, Mapping) else value for key, value in keys.items()}
    return {**config, **changed}


def test_llama_cpp_tokenizes_as_the_checkpoint(tiny_family: TinyFamily, full: QuantizedModel, tmp_path: Path) -> None:
    """Token ids are equal for byte-level and SentencePiece tokenizers and for several scripts."""
    if "gguf" in dict(family_named(tiny_family.name).unsupported_formats):
        return
    [file] = export_gguf(full, tmp_path).component_files("language")
    model, tokenizer = LanguageModel(llamacpp(), file), Tokenizer.from_file(str(full.path / "tokenizer.json"))
    for text in ("What does the sign say?\n\n 31415 circles!", "naïve  Übung — 猫が123見る\t🙂", "How many? it's"):
        assert llama_cpp_tokens(model, text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_all_engines_generate_with_a_cache(
    full: QuantizedModel, samples: list[Inputs], onnx: OnnxRunner, tmp_path: Path
) -> None:
    """After a text, an image and a chat with two images, greedy tokens are those of torch without a cache."""
    module, family = reference_model(full), family_named(full.artifact.manifest.family)
    processor, cached = family.open_processor(full.path), open_torch(full.path, 1)
    cached.load_all()
    prompts = [*samples[:2], *_two_images(processor, family)]
    expected = [greedy_tokens(module, processor.model_inputs, prompt, 6) for prompt in prompts]
    assert [list(generate(cached.predict(prompt), 6)) for prompt in prompts] == expected
    assert [list(onnx.generate(prompt, 6)) for prompt in prompts] == expected
    if "gguf" not in dict(family.unsupported_formats):
        runner = open_gguf(export_gguf(full, tmp_path).path, 1, f32_attention=True)
        assert [list(generate(runner.predict(prompt, 6), 6)) for prompt in prompts] == expected


def _two_images(processor: Processor, family: Family) -> list[Inputs]:
    """Return a chat with images of different sizes in two turns, if the family accepts it."""
    if not family.has_vision or family.prompt_format.slicing == "canvas":
        return []
    noise = np.random.default_rng(9)
    first, second = (Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)) for size in ((56, 56), (84, 140)))
    turns = [Message("user", (first, "How many?")), Message("assistant", ("three",)), Message("user", (second, "And?"))]
    return [processor.encode_chat(turns)]


def test_quantized_losses_agree_between_engines(
    family_checkpoint: Checkpoint, samples: list[Inputs], tmp_path: Path, expected: np.ndarray
) -> None:
    """With phone-int4, torch, ONNX Runtime and llama.cpp agree more with each other than with the original."""
    quantized = quantize(make_plan(family_checkpoint, Recipe.load("phone-int4")), tmp_path / "int4")
    torch_losses = np.concatenate(list(answer_losses(open_torch(quantized.path, 1), samples)))
    quantization_difference = np.abs(torch_losses - expected).mean()

    engines = {write_onnx_artifact(quantized, tmp_path / "onnx"): open_onnx}
    if "gguf" not in dict(family_checkpoint.family.unsupported_formats):
        engines[export_gguf(quantized, tmp_path).path] = open_gguf  # type: ignore[assignment]
    for path, opened in engines.items():
        losses = np.concatenate(list(answer_losses(opened(path, 1), samples)))
        assert np.abs(losses - torch_losses).mean() < 0.5 * quantization_difference, path


def test_passthrough_tensors_are_copied_unchanged(
    tiny_family: TinyFamily, family_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Their name, dtype and bytes do not depend on the recipe."""
    quantized = quantize(make_plan(family_checkpoint, Recipe.load("phone-int8")), tmp_path / "int8")
    passed = {spec.hub_name: quantized.load(spec.name) for spec in quantized.specs.values()}

    for name, tensor in tiny_family.extra_tensors.items():
        stored = passed[name]
        assert isinstance(stored, Tensor)
        assert torch.equal(stored, tensor)
        assert stored.dtype == tensor.dtype
    assert tiny_family.extra_tensors.keys() == passed.keys() - {spec.hub_name for spec in _known(family_checkpoint)}


def _known(family_checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
    return family_checkpoint.family.tensor_specs(family_checkpoint.architecture)
