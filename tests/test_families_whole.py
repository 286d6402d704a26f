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

from mcpmq.calibration import CalibrationSet
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.families.family import Inputs, TensorSpec
from mcpmq.families.minicpmv_native import MiniCPMVForConditionalGeneration
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners.gguf import open_runner as open_gguf
from mcpmq.runners.onnx import OnnxRunner
from mcpmq.runners.onnx import open_runner as open_onnx
from mcpmq.runners.torch import open_runner as open_torch
from mcpmq.smoothing import Scaling, scalings
from tests.gguf_tools import exported
from tests.losses import losses_of
from tests.moving import drawn_scales, scaled_logits
from tests.native import continuation, native_module
from tests.onnx_tools import artifact_of
from tests.tiny_families import TINY_FAMILIES, TinyFamily


@pytest.fixture(scope="module", params=TINY_FAMILIES, ids=lambda family: family.name + family.variant)
def tiny(request: pytest.FixtureRequest) -> TinyFamily:
    """One family after the other."""
    family: TinyFamily = request.param
    return family


@pytest.fixture(scope="module")
def checkpoint(tiny: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its tiny checkpoint."""
    return Checkpoint.open(tiny.build(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture(scope="module")
def full(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """With nothing quantized."""
    return quantize(make_plan(checkpoint, Recipe.load("full")), tmp_path_factory.mktemp("quantized") / "full")


@pytest.fixture(scope="module")
def samples(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Inputs]:
    """Text, and images wide and tall."""
    processor = checkpoint.family.processor(checkpoint.path)
    folder = tmp_path_factory.mktemp("images")
    made = [processor.encode("text", None, "How many?", "three circles are there")]
    for width, height in ((150, 90), (60, 200)) if checkpoint.family.sees else ():
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}.png")
        made.append(processor.encode(f"image-{width}", folder / f"{width}.png", "What does it say?", "red sign"))
    return made


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, samples: list[Inputs]) -> np.ndarray:
    """The losses of the original in torch."""
    return np.concatenate(list(losses_of(open_torch(checkpoint.path, 1), samples)))


def test_the_family_is_recognised(tiny: TinyFamily, checkpoint: Checkpoint) -> None:
    """By its configuration alone, and by no other family."""
    assert checkpoint.family.name == tiny.name


@pytest.fixture(scope="module")
def onnx(full: Quantized, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    """The unquantized model in ONNX Runtime."""
    return open_onnx(artifact_of(full, tmp_path_factory.mktemp("onnx") / "full"), 1)


def test_onnx_gives_the_losses_of_torch(onnx: OnnxRunner, samples: list[Inputs], expected: np.ndarray) -> None:
    """After text and after an image."""
    taken = np.concatenate(list(losses_of(onnx, samples)))

    np.testing.assert_allclose(taken, expected, rtol=0, atol=2e-5)


def test_gguf_gives_the_losses_of_torch(
    tiny: TinyFamily, full: Quantized, samples: list[Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After text and after an image; what remains there is llama.cpp's GELU in F16. Where a family's caveat says that
    llama.cpp computes something else, torch does so too: places of patches in two dimensions, norms without epsilon."""
    monkeypatch.setattr(MiniCPMVForConditionalGeneration, "position_sizes", lambda _, sizes: sizes)
    expected = np.concatenate(list(losses_of(open_torch(_with(full, tmp_path, tiny.in_llama_cpp), 1), samples)))
    if "gguf" in dict(family_named(tiny.name).refusals):
        with pytest.raises(FormatError, match=tiny.name):
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


def test_onnx_continues_as_torch_does(full: Quantized, samples: list[Inputs], onnx: OnnxRunner) -> None:
    """Greedily, with the cache, after text and after an image: token by token the same."""
    module, family = native_module(full), family_named(full.artifact.manifest.family)
    arguments = family.processor(full.path).arguments
    for sample, count in zip(samples[:2], (12, 6), strict=False):  # later a random model says the token of an image
        assert onnx.generate(sample, count) == continuation(module, arguments, sample, count)


def test_quantized_it_stays_near_itself(
    checkpoint: Checkpoint, samples: list[Inputs], tmp_path: Path, expected: np.ndarray
) -> None:
    """phone-int4 in every engine: the dequantized weights in torch, in ONNX Runtime and in llama.cpp agree more with
    each other than with the original."""
    quantized = quantize(make_plan(checkpoint, Recipe.load("phone-int4")), tmp_path / "int4")
    torch_losses = np.concatenate(list(losses_of(open_torch(quantized.path, 1), samples)))
    rounding = np.abs(torch_losses - expected).mean()

    engines = {artifact_of(quantized, tmp_path / "onnx"): open_onnx}
    if "gguf" not in dict(checkpoint.family.refusals):
        engines[exported(quantized, tmp_path).path] = open_gguf  # type: ignore[assignment]
    for path, opened in engines.items():
        losses = np.concatenate(list(losses_of(opened(path, 1), samples)))
        assert np.abs(losses - torch_losses).mean() < 0.5 * rounding, path


def test_what_the_family_does_not_know_is_handed_on(tiny: TinyFamily, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Under its name, in its dtype, bit by bit, whatever the recipe."""
    quantized = quantize(make_plan(checkpoint, Recipe.load("phone-int8")), tmp_path / "int8")
    passed = {spec.hub_name: quantized.load(spec.name) for spec in quantized.specs.values()}

    for name, tensor in tiny.more.items():
        assert torch.equal(passed[name], tensor)
        assert passed[name].dtype == tensor.dtype
    assert tiny.more.keys() == passed.keys() - {spec.hub_name for spec in _known(checkpoint)}


def _known(checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
    return checkpoint.family.tensors(checkpoint.architecture)


def test_it_is_rounded_by_what_it_sees(checkpoint: Checkpoint, samples: list[Inputs], tmp_path: Path) -> None:
    """Calibrated on images and text every matrix is reached: what it saw is on record."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = [{"id": "text", "prompt": "How many?", "answer": "three"}]
    if checkpoint.family.sees:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)).save(folder / "noise.png")
        lines.append({"id": "image", "prompt": "What?", "answer": "noise", "image": "noise.png"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = make_plan(checkpoint, Recipe.load("calibrated-int4"))

    quantized = quantize(plan, tmp_path / "int4", CalibrationSet.open(folder))

    rounded = [step.name for step in plan.steps if step.scheme is not None and step.spec.role == "matrix"]
    assert all(quantized.records[name].tokens for name in rounded)


def test_scales_move_and_no_output_changes(checkpoint: Checkpoint, samples: list[Inputs]) -> None:
    """At every place of the family at once; the same scales in the readers alone change everything."""
    recipe = {"name": "smooth", "smooth": "awq", "weights": {"*": "int8-g32"}}
    plan = make_plan(checkpoint, Recipe.model_validate(recipe))
    scaling = scalings(drawn_scales(plan))
    halves = {name: Scaling(columns=one.columns) for name, one in scaling.items()}

    before, after, spoilt = (scaled_logits(plan, samples, one) for one in ({}, scaling, halves))

    for one, other, wrong in zip(before, after, spoilt, strict=True):
        assert float((one - other).abs().max()) < 1e-4 * float(one.abs().max())
        assert float((one - wrong).abs().max()) > 0.1 * float(one.abs().max())
    moved = {block.partition(".")[0] for block in plan.folds}
    assert moved >= ({"vision", "language"} if checkpoint.family.sees else {"language"})
