"""The torch runner: losses, memory and errors."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError, EngineError
from mcpmq.families.family import Inputs, TensorSpec
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.modeling_minicpmv import build
from mcpmq.quantized_model import QuantizedModel
from mcpmq.runners import torch as torch_runner
from mcpmq.runners.torch import WeightStore, batch_by_tokens, open_runner
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


def test_streamed_weights_give_equal_losses_and_a_note(
    tiny_checkpoint: Path, tiny_samples: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little memory, weights are read block by block; the losses are bit-identical and a note reports it."""
    resident = open_runner(tiny_checkpoint, 1)
    monkeypatch.setattr(torch_runner, "RESIDENT_MEMORY_FRACTION", 1000 / psutil.virtual_memory().available)
    streamed = open_runner(tiny_checkpoint, 1)
    assert "held in memory" in resident.notes[0]
    assert "read from disk" in streamed.notes[0]
    assert not streamed.weights.resident
    for one, other in zip(answer_losses(resident, tiny_samples), answer_losses(streamed, tiny_samples), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("available", "resident"), [(1000, True), (999, False)])
def test_weights_are_resident_if_they_fit_into_four_fifths_of_the_memory(
    available: int, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """672 stored bytes and two float32 copies of a 4 x 4 weight are 800 bytes, 80 % of 1,000 available bytes."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    weights = WeightStore((TensorSpec("head", "lm_head.weight", (4, 4)),), lambda _: torch.ones(4, 4), nbytes=672)
    note = weights.load_if_memory_allows()
    assert bool(weights.resident) == resident
    assert ("held in memory" if resident else "read from disk") in note


def test_at_most_one_block_is_in_float32(tiny_checkpoint: Path, tiny_samples: list[Inputs]) -> None:
    """When a weight is loaded, all blocks are still empty."""
    runner = open_runner(tiny_checkpoint, 1)
    load, loaded_blocks = runner.weights.load_float32, []

    def counted(spec: object) -> torch.Tensor:
        loaded_blocks.append(sum(not block_is_empty(block) for block in runner.model.blocks))
        return load(spec)  # type: ignore[arg-type]

    object.__setattr__(runner, "weights", SimpleNamespace(load_float32=counted, resident={}))
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
    batches = list(batch_by_tokens(many, 100))
    assert [sample for batch in batches for sample in batch] == many
    assert all(len(batch) == 1 or sum(len(sample.tokens) for sample in batch) <= 100 for batch in batches)
    assert max(map(len, batches)) > 1
    assert list(batch_by_tokens([], 100)) == []


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


@pytest.mark.parametrize(
    ("weight", "block"),
    [("language.layers.1.mlp.up", "language.layers.1"), ("head", "head"), ("projector.kv", "projector")],
)
def test_the_first_non_finite_value_is_reported_with_sample_and_block(
    weight: str, block: str, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """An overflow in the projector fails the image sample and not the text sample before it."""
    runner = open_runner(tiny_checkpoint, 1)
    stored = runner.weights.resident[weight]
    assert isinstance(stored, torch.Tensor)
    runner.weights.resident[weight] = stored * torch.inf
    sample = "image-56" if block == "projector" else "text"
    with pytest.raises(EngineError, match=f"`{sample}`: first non-finite values in the output of `{block}`"):
        answer_losses(runner, tiny_samples[:2])
