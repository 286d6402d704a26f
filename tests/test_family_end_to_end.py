"""Every family in every engine: the same tokens and the same pixels give the logits of transformers."""

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

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.families.family import Inputs, TensorSpec
from mcpmq.families.modeling_minicpmv import MiniCPMVForConditionalGeneration
from mcpmq.families.modeling_minicpmv2 import Patches
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners.gguf import open_runner as open_gguf
from mcpmq.runners.llamacpp import llamacpp
from mcpmq.runners.llamacpp.language import LanguageModel
from mcpmq.runners.onnx import OnnxRunner
from mcpmq.runners.onnx import open_runner as open_onnx
from mcpmq.runners.torch import open_runner as open_torch
from tests.gguf_tools import exported, floats_along_one_row, nearest_positions, tokens_in_llama_cpp
from tests.loss_tools import losses_of
from tests.onnx_tools import artifact_of
from tests.reference_model import continuation, native_module
from tests.tiny_families import TinyFamily


@pytest.fixture(scope="module")
def full(family_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """With nothing quantized."""
    return quantize(make_plan(family_checkpoint, Recipe.load("full")), tmp_path_factory.mktemp("quantized") / "full")


@pytest.fixture(scope="module")
def samples(family_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Inputs]:
    """Text, and images wide and tall."""
    processor = family_checkpoint.family.processor(family_checkpoint.path)
    folder = tmp_path_factory.mktemp("images")
    made = [processor.encode("text", None, "How many?", "three circles are there")]
    for width, height in ((150, 90), (60, 200)) if family_checkpoint.family.sees else ():
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}.png")
        made.append(processor.encode(f"image-{width}", folder / f"{width}.png", "What does it say?", "red sign"))
    return made


@pytest.fixture(scope="module")
def expected(family_checkpoint: Checkpoint, samples: list[Inputs]) -> np.ndarray:
    """The losses of the original in torch."""
    return np.concatenate(list(losses_of(open_torch(family_checkpoint.path, 1), samples)))


def test_the_family_is_recognised(tiny_family: TinyFamily, family_checkpoint: Checkpoint) -> None:
    """By its configuration alone, and by no other family."""
    assert family_checkpoint.family.name == tiny_family.name


@pytest.fixture(scope="module")
def onnx(full: Quantized, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    """The unquantized model in ONNX Runtime."""
    return open_onnx(artifact_of(full, tmp_path_factory.mktemp("onnx") / "full"), 1)


def test_onnx_gives_the_losses_of_torch(onnx: OnnxRunner, samples: list[Inputs], expected: np.ndarray) -> None:
    """After text and after an image."""
    taken = np.concatenate(list(losses_of(onnx, samples)))

    np.testing.assert_allclose(taken, expected, rtol=0, atol=2e-5)


def test_graphs_ask_for_what_transformers_js_hands_over(tiny_family: TinyFamily, onnx: OnnxRunner) -> None:
    """The decoder for embeddings, mask, positions and its cache alone; the vision graph of Qwen-VL for patches and
    their grid, which has another name in 2 than in later ones."""
    asked = {one.name for one in onnx.decoder.get_inputs() if not one.name.startswith("past_")}
    assert asked == {"inputs_embeds", "attention_mask", "position_ids", "num_logits_to_keep"}
    if tiny_family.name.startswith("qwen"):
        grid = "grid_thw" if tiny_family.name == "qwen2-vl" else "image_grid_thw"
        assert {one.name for one in onnx.vision.get_inputs()} == {"pixel_values", grid}
        assert [one.name for one in onnx.vision.get_outputs()] == ["image_features"]


def test_gguf_gives_the_losses_of_torch(
    tiny_family: TinyFamily, full: Quantized, samples: list[Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After text and after an image; what remains there is llama.cpp's GELU in F16. Where a family's caveat says that
    llama.cpp computes something else, torch does so too: places of patches in two dimensions, or of the nearest cell,
    norms without epsilon."""
    monkeypatch.setattr(MiniCPMVForConditionalGeneration, "position_sizes", lambda _, sizes: sizes)
    monkeypatch.setattr(Patches, "positions", nearest_positions)
    if full.architecture.vision and full.architecture.vision.one_row:
        monkeypatch.setattr("mcpmq.runners.torch.floats_of", floats_along_one_row)
    expected = np.concatenate(list(losses_of(open_torch(_with(full, tmp_path, tiny_family.in_llama_cpp), 1), samples)))
    if "gguf" in dict(family_named(tiny_family.name).refusals):
        with pytest.raises(FormatError, match=tiny_family.name):
            exported(full, tmp_path)
        return
    runner = open_gguf(exported(full, tmp_path).path, 1, exact=True)
    text = len(samples[0].tokens) - samples[0].answer_start
    difference = np.abs(np.concatenate(list(losses_of(runner, samples))) - expected)

    assert runner.notes == ()
    assert difference[:text].max() < 2e-5
    assert difference.max() < 1e-3


def _with(full: Quantized, folder: Path, keys: Mapping[str, Any]) -> Path:
    """A copy with some keys of config.json changed."""
    copy = shutil.copytree(full.path, folder / "changed")
    (copy / "config.json").write_text(json.dumps({**full.config, **keys}))
    return copy


def test_llama_cpp_splits_text_into_the_same_tokens(tiny_family: TinyFamily, full: Quantized, tmp_path: Path) -> None:
    """Byte-level tokenizers and those in SentencePiece's manner, whatever script a text has."""
    if "gguf" in dict(family_named(tiny_family.name).refusals):
        return
    [file] = exported(full, tmp_path).files_of("language")
    model, tokenizer = LanguageModel(llamacpp(), file), Tokenizer.from_file(str(full.path / "tokenizer.json"))
    for text in ("What does the sign say?\n\n 31415 circles!", "naïve  Übung — 猫が123見る\t🙂", "How many? it's"):
        assert tokens_in_llama_cpp(model, text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_onnx_continues_as_torch_does(full: Quantized, samples: list[Inputs], onnx: OnnxRunner) -> None:
    """Greedily, with the cache, after text and after an image: token by token the same."""
    module, family = native_module(full), family_named(full.artifact.manifest.family)
    arguments = family.processor(full.path).arguments
    for sample, count in zip(samples[:2], (12, 6), strict=False):  # later a random model says the token of an image
        assert onnx.generate(sample, count) == continuation(module, arguments, sample, count)


def test_quantized_it_stays_near_itself(
    family_checkpoint: Checkpoint, samples: list[Inputs], tmp_path: Path, expected: np.ndarray
) -> None:
    """phone-int4 in every engine: the dequantized weights in torch, in ONNX Runtime and in llama.cpp agree more with
    each other than with the original."""
    quantized = quantize(make_plan(family_checkpoint, Recipe.load("phone-int4")), tmp_path / "int4")
    torch_losses = np.concatenate(list(losses_of(open_torch(quantized.path, 1), samples)))
    rounding = np.abs(torch_losses - expected).mean()

    engines = {artifact_of(quantized, tmp_path / "onnx"): open_onnx}
    if "gguf" not in dict(family_checkpoint.family.refusals):
        engines[exported(quantized, tmp_path).path] = open_gguf  # type: ignore[assignment]
    for path, opened in engines.items():
        losses = np.concatenate(list(losses_of(opened(path, 1), samples)))
        assert np.abs(losses - torch_losses).mean() < 0.5 * rounding, path


def test_what_the_family_does_not_know_is_handed_on(
    tiny_family: TinyFamily, family_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Under its name, in its dtype, bit by bit, whatever the recipe."""
    quantized = quantize(make_plan(family_checkpoint, Recipe.load("phone-int8")), tmp_path / "int8")
    passed = {spec.hub_name: quantized.load(spec.name) for spec in quantized.specs.values()}

    for name, tensor in tiny_family.more.items():
        assert torch.equal(passed[name], tensor)
        assert passed[name].dtype == tensor.dtype
    assert tiny_family.more.keys() == passed.keys() - {spec.hub_name for spec in _known(family_checkpoint)}


def _known(family_checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
    return family_checkpoint.family.tensors(family_checkpoint.architecture)
