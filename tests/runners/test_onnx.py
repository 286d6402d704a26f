"""ONNX Runtime computes what torch computes with the same weights: token by token, with and without the cache."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError, EngineError, MissingExtra
from mcpmq.families.family import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.plan import make_plan
from mcpmq.quantize import quantize
from mcpmq.quantized_model import Quantized
from mcpmq.recipe import Recipe
from mcpmq.runners.onnx import ROUNDED, OnnxRunner, open_runner
from mcpmq.scheme import parse_scheme
from tests.loss_tools import losses_of
from tests.onnx_tools import artifact_of
from tests.reference_model import native_continuation, native_losses, native_model

# One slice; slices of two shapes; wide and tall overviews; many slices. The tiny model's slices have about 56 x 56.
SIZES = [None, (56, 56), (84, 42), (40, 300), (150, 90), (200, 200)]
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="session")
def processor(tiny_checkpoint: Path) -> MiniCpmVProcessor:
    """The tiny checkpoint's own preprocessing."""
    return MiniCpmVProcessor.open(tiny_checkpoint)


@pytest.fixture(scope="session")
def samples(processor: MiniCpmVProcessor, tmp_path_factory: pytest.TempPathFactory) -> list[Inputs]:
    """A question without an image, and about noise of every size."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for size in SIZES:
        image = folder / f"{size}.png" if size else None
        if image and size:
            Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(image)
        made.append(processor.encode(str(size), image, "What does the sign say?", "The sign says red."))
    return made


@pytest.fixture(scope="session")
def full_model(tiny_full: Quantized) -> nn.Module:
    """The tiny model in torch."""
    return native_model(tiny_full)


@pytest.fixture(scope="session")
def full_runner(tiny_full_onnx: Path) -> OnnxRunner:
    """The tiny model in ONNX Runtime."""
    return open_runner(tiny_full_onnx, threads=1)


@pytest.fixture(scope="session")
def int4_model(tiny_int4: Quantized) -> nn.Module:
    """phone-int4's weights, dequantized, in torch."""
    return native_model(tiny_int4)


@pytest.fixture(scope="session")
def int4_runner(tiny_int4: Quantized, tmp_path_factory: pytest.TempPathFactory) -> OnnxRunner:
    """phone-int4's codes in ONNX Runtime, activations not rounded."""
    return open_runner(artifact_of(tiny_int4, tmp_path_factory.mktemp("onnx") / "int4"), threads=1)


def test_samples_have_slices_that_are_no_squares(samples: list[Inputs]) -> None:
    """The samples that parity is tested on do cover several slices, and wide and tall ones."""
    shapes = [part.shape[:2] for sample in samples for part in sample.slices]
    assert any(height > width for height, width in shapes)
    assert any(height < width for height, width in shapes)
    assert [len(sample.slices) for sample in samples][:2] == [0, 1]
    assert max(len(sample.slices) for sample in samples) > 5


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_unquantized_losses_equal_torch_token_by_token(
    index: int, samples: list[Inputs], full_runner: OnnxRunner, full_model: nn.Module, processor: MiniCpmVProcessor
) -> None:
    """Text, one slice, several slices, wide and tall slices: every token's loss is torch's."""
    [found] = losses_of(full_runner, [samples[index]])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, native_losses(full_model, processor, samples[index]), **CLOSE)


def test_losses_of_integer_codes_equal_torch(
    samples: list[Inputs], int4_runner: OnnxRunner, int4_model: nn.Module, processor: MiniCpmVProcessor
) -> None:
    """4-bit and 8-bit codes in ONNX Runtime are the same model as their dequantized values in torch."""
    for sample, found in zip(samples, losses_of(int4_runner, samples), strict=True):
        np.testing.assert_allclose(found, native_losses(int4_model, processor, sample), **CLOSE)


@pytest.mark.parametrize("scheme", ["keep", "f16", "int4-g32-asym", "int8-row-asym", "int8-g256"])
def test_every_kind_of_scheme_equals_torch(
    scheme: str, samples: list[Inputs], tiny_checkpoint: Path, processor: MiniCpmVProcessor, tmp_path: Path
) -> None:
    """Half-width floats, one scale a row, zero points, groups wider than the vision tower: all are torch's model."""
    recipe = Recipe(name="one", weights={"*": parse_scheme(scheme)})
    quantized = quantize(make_plan(Checkpoint.open(tiny_checkpoint), recipe), tmp_path / "quantized")
    runner = open_runner(artifact_of(quantized, tmp_path / "onnx"), threads=1)
    [found] = losses_of(runner, [samples[2]])
    np.testing.assert_allclose(found, native_losses(native_model(quantized), processor, samples[2]), **CLOSE)


@pytest.mark.parametrize("index", [0, 2])
def test_greedy_generation_equals_torch(
    index: int, samples: list[Inputs], int4_runner: OnnxRunner, int4_model: nn.Module, processor: MiniCpmVProcessor
) -> None:
    """20 tokens with the cache in ONNX Runtime are those of torch on dequantized weights, computed without a cache."""
    expected = native_continuation(int4_model, processor, samples[index], 20)
    assert int4_runner.generate(samples[index], 20) == expected


@pytest.mark.parametrize("cuts", [(1,), (7, 8, 30), tuple(range(1, 49))])
def test_chunked_prefill_equals_whole_prefill(
    cuts: tuple[int, ...], samples: list[Inputs], full_runner: OnnxRunner
) -> None:
    """However the tokens are cut into calls, down to one by one, the logits and the cache are the same."""
    embeddings = full_runner.embed(samples[1], 49)
    whole, whole_cache = full_runner.decode(embeddings, full_runner.empty_cache(), 0)
    cache, pieces = full_runner.empty_cache(), []
    for piece in np.split(embeddings, cuts):
        logits, cache = full_runner.decode(piece, cache, 0)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces), whole, **CLOSE)
    for name, values in whole_cache.items():
        np.testing.assert_allclose(cache[name], values, **CLOSE)


def test_only_the_logits_asked_for_are_computed(samples: list[Inputs], full_runner: OnnxRunner) -> None:
    """`num_logits_to_keep` keeps the last ones; 0 keeps all."""
    embeddings = full_runner.lookup(samples[0].tokens)
    every, _ = full_runner.decode(embeddings, full_runner.empty_cache(), 0)
    last, _ = full_runner.decode(embeddings, full_runner.empty_cache(), 3)
    assert len(every) == len(embeddings)
    np.testing.assert_allclose(last, every[-3:], **CLOSE)


def test_a_batch_padded_on_the_right_gives_what_each_gives_alone(full_runner: OnnxRunner) -> None:
    """Two sequences of different lengths in one call."""
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
def test_patch_positions_equal_torch(height: int, full_runner: OnnxRunner, full_model: nn.Module) -> None:
    """Columns of patches of every kind, also lengths where rounding in floats would move a patch to another cell."""
    pixels = torch.randn((1, 3, 14, 14 * height * 2), generator=torch.Generator().manual_seed(height))
    sizes = torch.tensor([[height, 2]])
    with torch.no_grad():
        expected = full_model.get_image_features(pixels, sizes)[0]  # type: ignore[operator]
    found = full_runner.vision.run(None, {"pixel_values": pixels.numpy(), "tgt_sizes": sizes.numpy()})[0]
    np.testing.assert_allclose(found, expected.numpy(), **CLOSE)


def test_slices_of_equal_size_may_share_a_call(full_runner: OnnxRunner) -> None:
    """A wide and a tall slice of equally many patches in one call give what they give alone."""
    pixels = np.random.default_rng(0).standard_normal((2, 3, 14, 14 * 12)).astype(np.float32)
    sizes = np.array([[2, 6], [4, 3]])
    together = full_runner.vision.run(None, {"pixel_values": pixels, "tgt_sizes": sizes})[0]
    for index, alone in enumerate(np.split(together, 2)):
        one = {"pixel_values": pixels[index : index + 1], "tgt_sizes": sizes[index : index + 1]}
        np.testing.assert_allclose(alone, full_runner.vision.run(None, one)[0], **CLOSE)


def test_the_fast_path_is_near_and_not_the_same(
    tiny_int4: Quantized, samples: list[Inputs], int4_runner: OnnxRunner, tmp_path: Path
) -> None:
    """With activations of 8 bits, as phones compute, losses move, but little; a note says so."""
    fast = open_runner(artifact_of(tiny_int4, tmp_path / "fast", accuracy_level=4), threads=1)
    pairs = zip(losses_of(fast, samples), losses_of(int4_runner, samples), strict=True)
    difference = max(float(np.abs(found - exact).max()) for found, exact in pairs)
    assert 1e-4 < difference < 0.2
    assert fast.notes == (ROUNDED,)
    assert int4_runner.notes == ()


@pytest.mark.parametrize(
    ("layer", "told"), [(None, "`vision`"), (0, "`language.layers.0`"), (1, "`language.layers.0` or the")]
)
def test_where_values_stop_being_numbers_is_told(
    layer: int | None, told: str, samples: list[Inputs], full_runner: OnnxRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what went into the decoder and by the keys of its layers."""
    decode = OnnxRunner.decode

    def overflowing(*args: object) -> tuple[object, object]:
        logits, cache = decode(*args)  # type: ignore[arg-type]
        spoilt = {name: values * (np.nan if f".{layer}." in name else 1) for name, values in cache.items()}
        return logits * np.nan, spoilt

    monkeypatch.setattr(OnnxRunner, "decode", overflowing)
    if layer is None:
        monkeypatch.setattr(
            OnnxRunner, "embed", lambda *_: np.full((len(samples[0].tokens) - 1, 256), np.inf, np.float32)
        )
    with pytest.raises(EngineError, match=f"`{samples[0].id}`: values that are not finite first come out of {told}"):
        losses_of(full_runner, samples[:1])


def test_running_imports_no_torch(tiny_full_onnx: Path) -> None:
    """The process whose memory is measured holds the runtime and not torch."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from mcpmq.runners.onnx import open_runner\n"
        f"open_runner(Path({str(tiny_full_onnx)!r}), 1).lookup(np.array([1])); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_missing_runtime_says_what_to_install(tiny_full_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxruntime the hint names the extra."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra) as caught:
        open_runner(tiny_full_onnx, 1)
    assert "mcpmq[onnx]" in caught.value.hint


def test_another_kind_of_artifact_is_refused(tiny_full: Quantized) -> None:
    """A quantized folder is no ONNX artifact."""
    with pytest.raises(ArtifactError, match="quantized artifact"):
        open_runner(tiny_full.path, 1)


def test_a_broken_graph_is_named(tiny_full: Quantized, tmp_path: Path) -> None:
    """A graph that the runtime cannot load is an error with its path."""
    path = artifact_of(tiny_full, tmp_path / "broken")
    (path / "onnx" / "embed_tokens.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"embed_tokens\.onnx"):
        open_runner(path, 1)
