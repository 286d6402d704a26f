"""The torch runner: losses, memory and errors."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError, DeviceError, EngineError
from mcpmq.execution.torch_model import StoredWeight, to_float
from mcpmq.families.family import TensorSpec
from mcpmq.families.inputs import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.modeling_minicpmv import build
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners import torch as torch_runner
from mcpmq.runners.torch import batches, open_runner
from tests.loss_tools import answer_losses


def reference_losses(path: Path, samples: list[Inputs]) -> list[np.ndarray]:
    """Return the losses of each sample, with the whole model in memory and an explicit softmax."""
    checkpoint = Checkpoint.open(path)
    model = build(checkpoint.config)
    model.load_state_dict(
        {spec.hub_name: checkpoint.load_stored(spec).float() for spec in checkpoint.specs}, assign=True
    )
    arguments, losses = MiniCpmVProcessor.open(path).model_inputs, []
    for sample in samples:
        tensors = {name: torch.from_numpy(value) for name, value in arguments(sample).items()}
        with torch.inference_mode():
            logits = model(**tensors, use_cache=False).logits[0].double().numpy()
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        positions = range(sample.answer_start, len(sample.tokens))
        losses.append(np.array([-np.log(probabilities[index - 1, sample.tokens[index]]) for index in positions]))
    return losses


def test_losses_equal_those_of_the_whole_model(tiny_checkpoint: Path, tiny_samples: list[Inputs]) -> None:
    """Losses of text and image samples, block by block, equal those of the model loaded at once."""
    losses = answer_losses(open_runner(tiny_checkpoint, 1), tiny_samples)
    for loss, expected, sample in zip(
        losses, reference_losses(tiny_checkpoint, tiny_samples), tiny_samples, strict=True
    ):
        assert loss.dtype == np.float64
        assert len(loss) == len(sample.tokens) - sample.answer_start
        np.testing.assert_allclose(loss, expected, atol=2e-6)


def test_weights_are_read_again_for_every_batch(
    tiny_checkpoint: Path, tiny_samples: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small batches read the weights more often; the losses are bit-identical, and a note reports the streaming."""
    runner, reads = open_runner(tiny_checkpoint, 1), Counter[str]()
    read = runner.weights.read

    def counted(spec: TensorSpec) -> StoredWeight:
        reads[spec.name] += 1
        return read(spec)

    object.__setattr__(runner, "weights", replace(runner.weights, read=counted))
    together = answer_losses(runner, tiny_samples)
    once = set(reads.values())
    monkeypatch.setattr(torch_runner, "BATCH_TOKENS", 1)
    alone = answer_losses(runner, tiny_samples)

    assert once == {1}
    assert max(reads.values()) == 1 + len(tiny_samples)
    assert "one block is in memory at a time" in runner.notes[-1]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])
def test_weights_are_converted_in_chunks(tiny_checkpoint: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and matrices in float32 are those of the whole tensor for any size of chunks."""
    monkeypatch.setattr(sys.modules["mcpmq.checkpoint"], "CHUNK_WEIGHTS", chunk)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    for spec in checkpoint.specs:
        assert torch.equal(checkpoint.load_float32(spec), checkpoint.load(spec).float()), spec.name


def test_at_most_one_block_is_in_float32(tiny_checkpoint: Path, tiny_samples: list[Inputs]) -> None:
    """When a weight is loaded, all blocks are still empty."""
    runner = open_runner(tiny_checkpoint, 1)
    load, loaded_blocks = runner.weights.load_float32, []

    def counted(spec: TensorSpec, device: torch.device) -> torch.Tensor:
        loaded_blocks.append(sum(not block_is_empty(block) for block in runner.model.blocks))
        return load(spec, device)

    object.__setattr__(runner, "weights", SimpleNamespace(load_float32=counted))
    answer_losses(runner, tiny_samples)
    assert len(loaded_blocks) >= len(runner.model.module.state_dict())
    assert set(loaded_blocks) == {0}
    assert all(block_is_empty(block) for block in runner.model.blocks)


def block_is_empty(block: nn.Module) -> bool:
    """Return True if no parameter of the block has memory."""
    return all(parameter.untyped_storage().nbytes() <= 4 for parameter in block.parameters())


def test_batches_are_bounded_by_tokens_and_keep_the_order(tiny_samples: list[Inputs]) -> None:
    """All samples are returned in order; a sample longer than the limit is a batch of its own."""
    many = tiny_samples * 5
    found = list(batches(many, 100))
    assert [sample for batch in found for sample in batch] == many
    assert all(len(batch) == 1 or sum(len(sample.tokens) for sample in batch) <= 100 for batch in found)
    assert max(map(len, found)) > 1
    assert list(batches([], 100)) == []


def test_pixels_count_where_they_need_more_memory_than_tokens(tiny_samples: list[Inputs]) -> None:
    """1,600 pixels count as one token: two images of 320 x 320 pixels, 64 tokens each, do not fit into 100."""
    images = [
        replace(one, tokens=one.tokens[:9], slices=(np.zeros((320, 320, 3), np.uint8),)) for one in tiny_samples[:3]
    ]

    assert list(map(len, batches(images, 100))) == [1, 1, 1]
    assert list(map(len, batches(images, 128))) == [2, 1]


def test_unquantized_weights_give_the_losses_of_the_checkpoint(
    tiny_checkpoint: Path, tiny_full: QuantizedModel, tiny_samples: list[Inputs]
) -> None:
    """A quantized model that keeps every dtype has the losses of its checkpoint, bit by bit."""
    runner = open_runner(tiny_full.path, 1)
    assert "dequantized" in runner.notes[0]
    source = open_runner(tiny_checkpoint, 1)
    for one, other in zip(answer_losses(runner, tiny_samples), answer_losses(source, tiny_samples), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("artifact", ["tiny_int4", "tiny_quality"])
def test_quantized_weights_are_dequantized(
    artifact: str, request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """Integer and ggml schemes run, and their losses are close to the original's, but not equal."""
    quantized: QuantizedModel = request.getfixturevalue(artifact)
    losses = np.concatenate(answer_losses(open_runner(quantized.path, 1), tiny_samples))
    original = np.concatenate(answer_losses(open_runner(tiny_checkpoint, 1), tiny_samples))
    assert 1e-4 < np.abs(losses - original).max() < 3


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    """The error names the missing file."""
    with pytest.raises(CheckpointError, match=r"no `config.json`"):
        open_runner(tmp_path, 1)


def test_an_unavailable_device_is_an_error(tiny_checkpoint: Path) -> None:
    """Before a weight is read; the error names it."""
    with pytest.raises(DeviceError, match="`cuda:99` is not available"):
        open_runner(tiny_checkpoint, 1, device="cuda:99")


@pytest.mark.parametrize(
    ("weight", "block"),
    [("language.layers.1.mlp.up", "language.layers.1"), ("head", "head"), ("projector.kv", "projector")],
)
def test_the_first_non_finite_value_is_reported_with_sample_and_block(
    weight: str, block: str, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """An overflow in the projector fails the image sample and not the text sample before it."""
    runner = open_runner(tiny_checkpoint, 1)
    read = runner.weights.read
    infinite = replace(
        runner.weights, read=lambda spec: to_float(read(spec), spec) * (torch.inf if spec.name == weight else 1)
    )
    object.__setattr__(runner, "weights", infinite)
    sample = "image-56" if block == "projector" else "text"
    with pytest.raises(EngineError, match=f"`{sample}`: first non-finite values in the output of `{block}`"):
        answer_losses(runner, tiny_samples[:2])
