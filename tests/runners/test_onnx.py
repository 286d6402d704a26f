"""ONNX Runtime and torch compute the same with the same weights, with and without a KV cache."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, EngineError, MissingExtra
from mcpmq.families.inputs import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import QuantizedModel
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import INT8_ACTIVATIONS_NOTE, OnnxRunner, open_runner
from mcpmq.scheme import parse_scheme
from tests.loss_tools import answer_losses
from tests.onnx_tools import write_onnx_artifact
from tests.reference_model import greedy_tokens, reference_losses, reference_model

# No image; one slice; slices of two shapes; wide and tall overviews; many slices (about 56 x 56 pixels each).
SIZES = [None, (56, 56), (84, 42), (40, 300), (150, 90), (200, 200)]
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="session")
def processor(tiny_checkpoint: Path) -> MiniCpmVProcessor:
    """The processor of the tiny checkpoint."""
    return MiniCpmVProcessor.open(tiny_checkpoint)


@pytest.fixture(scope="session")
def samples(processor: MiniCpmVProcessor, tmp_path_factory: pytest.TempPathFactory) -> list[Inputs]:
    """A text sample, and samples with noise images of every size."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    encoded = []
    for size in SIZES:
        image = folder / f"{size}.png" if size else None
        if image and size:
            Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(image)
        encoded.append(processor.encode(str(size), image, "What does the sign say?", "The sign says red."))
    return encoded


@pytest.fixture(scope="session")
def full_model(tiny_full: QuantizedModel) -> nn.Module:
    """The tiny model in torch."""
    return reference_model(tiny_full)


@pytest.fixture(scope="session")
def full_runner(tiny_full_onnx: Path) -> OnnxRunner:
    """The tiny model in ONNX Runtime."""
    return open_runner(tiny_full_onnx, threads=1)


@pytest.fixture(scope="session")
def int4_model(tiny_int4: QuantizedModel) -> nn.Module:
    """The dequantized weights of phone-int4 in torch."""
    return reference_model(tiny_int4)


@pytest.fixture(scope="session")
def int4_runner(tiny_int4: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    """The tiny model quantized with phone-int4 in ONNX Runtime, with float activations."""
    return open_runner(write_onnx_artifact(tiny_int4, tmp_path_factory.mktemp("onnx") / "int4"), threads=1)


def test_samples_include_wide_and_tall_slices(samples: list[Inputs]) -> None:
    """The samples of these tests have no slice, one slice, many slices, wide slices and tall slices."""
    shapes = [part.shape[:2] for sample in samples for part in sample.slices]
    assert any(height > width for height, width in shapes)
    assert any(height < width for height, width in shapes)
    assert [len(sample.slices) for sample in samples][:2] == [0, 1]
    assert max(len(sample.slices) for sample in samples) > 5


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_unquantized_losses_equal_those_of_torch(
    index: int, samples: list[Inputs], full_runner: OnnxRunner, full_model: nn.Module, processor: MiniCpmVProcessor
) -> None:
    """The loss of every token equals that of torch, for every number and shape of slices."""
    [found] = answer_losses(full_runner, [samples[index]])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, reference_losses(full_model, processor.model_inputs, samples[index]), **CLOSE)


def test_quantized_losses_equal_those_of_dequantized_weights_in_torch(
    samples: list[Inputs], int4_runner: OnnxRunner, int4_model: nn.Module, processor: MiniCpmVProcessor
) -> None:
    """4-bit and 8-bit codes in ONNX Runtime give the losses of their dequantized values in torch."""
    for sample, found in zip(samples, answer_losses(int4_runner, samples), strict=True):
        np.testing.assert_allclose(found, reference_losses(int4_model, processor.model_inputs, sample), **CLOSE)


@pytest.mark.parametrize("scheme", ["keep", "f16", "int4-g32-asym", "int8-row-asym", "int8-g256"])
def test_every_kind_of_scheme_gives_the_losses_of_torch(
    scheme: str, samples: list[Inputs], tiny_checkpoint: Path, processor: MiniCpmVProcessor, tmp_path: Path
) -> None:
    """F16, one scale per row, zero points and groups wider than a row of the vision tower give the losses of torch."""
    recipe = Recipe(name="one", weights={"*": parse_scheme(scheme)})
    quantized = quantize(make_plan(Checkpoint.open(tiny_checkpoint), recipe), tmp_path / "quantized")
    runner = open_runner(write_onnx_artifact(quantized, tmp_path / "onnx"), threads=1)
    [found] = answer_losses(runner, [samples[2]])
    np.testing.assert_allclose(
        found, reference_losses(reference_model(quantized), processor.model_inputs, samples[2]), **CLOSE
    )


@pytest.mark.parametrize("index", [0, 2])
def test_greedy_generation_equals_that_of_torch(
    index: int, samples: list[Inputs], int4_runner: OnnxRunner, int4_model: nn.Module, processor: MiniCpmVProcessor
) -> None:
    """20 tokens generated with the KV cache equal those of torch without a cache."""
    expected = greedy_tokens(int4_model, processor.model_inputs, samples[index], 20)
    assert list(int4_runner.generate(samples[index], 20)) == expected


@pytest.mark.parametrize("cuts", [(1,), (7, 8, 30), tuple(range(1, 49))])
def test_chunked_prefill_equals_prefill_in_one_call(
    cuts: tuple[int, ...], samples: list[Inputs], full_runner: OnnxRunner
) -> None:
    """Logits and cache do not depend on the chunks, down to one token per call."""
    embeddings = full_runner.embed(samples[1], 49)
    whole, whole_cache = full_runner.decode(embeddings, full_runner.empty_cache(), 0)
    cache, pieces = full_runner.empty_cache(), []
    for piece in np.split(embeddings, cuts):
        logits, cache = full_runner.decode(piece, cache, 0)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces), whole, **CLOSE)
    for name, values in whole_cache.items():
        np.testing.assert_allclose(cache[name], values, **CLOSE)


def test_only_the_requested_logits_are_computed(samples: list[Inputs], full_runner: OnnxRunner) -> None:
    """`num_logits_to_keep` keeps the last logits; 0 keeps all."""
    embeddings = full_runner.embed_tokens(samples[0].tokens)
    every, _ = full_runner.decode(embeddings, full_runner.empty_cache(), 0)
    last, _ = full_runner.decode(embeddings, full_runner.empty_cache(), 3)
    assert len(every) == len(embeddings)
    np.testing.assert_allclose(last, every[-3:], **CLOSE)


def test_a_right_padded_batch_equals_single_sequences(full_runner: OnnxRunner) -> None:
    """Two sequences of different lengths in one call have the logits of separate calls."""
    generator = np.random.default_rng(0)
    lengths, cache = (9, 5), {name: np.repeat(one, 2, 0) for name, one in full_runner.empty_cache().items()}
    embeddings = generator.standard_normal((2, 9, 256)).astype(np.float32)
    inputs = {
        "inputs_embeds": embeddings,
        "attention_mask": (np.arange(9) < np.array(lengths)[:, None]).astype(np.int64),
        "position_ids": np.tile(np.arange(9), (2, 1)),
        "num_logits_to_keep": np.array(0),
    }
    together = full_runner.decoder.run(["logits"], inputs | cache)[0]
    for row, length in enumerate(lengths):
        alone, _ = full_runner.decode(embeddings[row, :length], full_runner.empty_cache(), 0)
        np.testing.assert_allclose(together[row, :length], alone, **CLOSE)


@pytest.mark.parametrize("height", [1, 3, 25, 49, 50, 55, 58, 70, 71, 100])
def test_patch_positions_equal_those_of_torch(height: int, full_runner: OnnxRunner, full_model: nn.Module) -> None:
    """Image features are equal for many heights, including those where float rounding would move a patch."""
    pixels = torch.randn((1, 3, 14, 14 * height * 2), generator=torch.Generator().manual_seed(height))
    sizes = torch.tensor([[height, 2]])
    with torch.no_grad():
        expected = full_model.get_image_features(pixels, sizes)[0]  # type: ignore[operator]
    found = full_runner.vision.run(None, {"pixel_values": pixels.numpy(), "tgt_sizes": sizes.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), **CLOSE)


def test_slices_with_equally_many_patches_can_share_a_call(full_runner: OnnxRunner) -> None:
    """A wide and a tall slice in one call have the features of separate calls."""
    pixels = np.random.default_rng(0).standard_normal((2, 3, 14, 14 * 12)).astype(np.float32)
    sizes = np.array([[2, 6], [4, 3]])
    together = full_runner.vision.run(None, {"pixel_values": pixels, "tgt_sizes": sizes})[0]
    for index, alone in enumerate(np.split(together, 2)):
        one = {"pixel_values": pixels[index : index + 1], "tgt_sizes": sizes[index : index + 1]}
        np.testing.assert_allclose(alone, full_runner.vision.run(None, one)[0], **CLOSE)


def test_int8_activations_change_the_losses_a_little(
    tiny_int4: QuantizedModel, samples: list[Inputs], int4_runner: OnnxRunner, tmp_path: Path
) -> None:
    """Accuracy level 4 quantizes activations; the losses change by less than 0.2, and a note reports it."""
    fast = open_runner(write_onnx_artifact(tiny_int4, tmp_path / "fast", accuracy_level=4), threads=1)
    pairs = zip(answer_losses(fast, samples), answer_losses(int4_runner, samples), strict=True)
    difference = max(float(np.abs(found - exact).max()) for found, exact in pairs)
    assert 1e-4 < difference < 0.2
    assert fast.notes == (INT8_ACTIVATIONS_NOTE,)
    assert int4_runner.notes == ()


@pytest.mark.parametrize(
    ("layer", "source"), [(None, "`vision`"), (0, "`language.layers.0`"), (1, "`language.layers.0` or the")]
)
def test_the_first_non_finite_value_is_reported_with_its_layer(
    layer: int | None, source: str, samples: list[Inputs], full_runner: OnnxRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer is found by the inputs of the decoder and the cached keys of its layers."""
    decode = OnnxRunner.decode

    def overflowing(*args: object) -> tuple[object, object]:
        logits, cache = decode(*args)  # type: ignore[arg-type]
        damaged = {name: values * (np.nan if f".{layer}." in name else 1) for name, values in cache.items()}
        return logits * np.nan, damaged

    monkeypatch.setattr(OnnxRunner, "decode", overflowing)
    if layer is None:
        monkeypatch.setattr(
            OnnxRunner, "embed", lambda *_: np.full((len(samples[0].tokens) - 1, 256), np.inf, np.float32)
        )
    with pytest.raises(EngineError, match=f"`{samples[0].id}`: first non-finite values in the output of {source}"):
        answer_losses(full_runner, samples[:1])


def test_the_runner_does_not_import_torch(tiny_full_onnx: Path) -> None:
    """The memory of the measured process does not include torch."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from mcpmq.runners.onnx import open_runner\n"
        f"open_runner(Path({str(tiny_full_onnx)!r}), 1).embed_tokens(np.array([1])); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_missing_runtime_is_an_error_with_the_extra(tiny_full_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names the extra that installs onnxruntime."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra) as caught:
        open_runner(tiny_full_onnx, 1)
    assert "mcpmq[onnx]" in caught.value.hint


def test_an_artifact_of_another_format_is_an_error(tiny_full: QuantizedModel) -> None:
    """A quantized model is not an ONNX artifact."""
    with pytest.raises(ArtifactError, match="quantized artifact"):
        open_runner(tiny_full.path, 1)


def test_a_damaged_graph_is_an_error_with_its_path(tiny_full: QuantizedModel, tmp_path: Path) -> None:
    """The error names the graph file that ONNX Runtime cannot load."""
    path = write_onnx_artifact(tiny_full, tmp_path / "broken")
    (path / "onnx" / "embed_tokens.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"embed_tokens\.onnx"):
        open_runner(path, 1)
