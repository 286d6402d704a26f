"""The torch runner gives the losses of the plain model, however its weights are kept."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CheckpointError, EngineError
from mcpmq.families.family import Inputs
from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor
from mcpmq.families.modeling_minicpmv import build
from mcpmq.quantized_model import Quantized
from mcpmq.runners import torch as torch_runner
from mcpmq.runners.torch import open_runner, waves
from tests.loss_tools import losses_of


def plain_losses(path: Path, samples: list[Inputs]) -> list[np.ndarray]:
    """The whole model loaded, one sample after the other, softmax written out."""
    checkpoint = Checkpoint.open(path)
    model = build(checkpoint.config)
    model.load_state_dict(
        {spec.hub_name: checkpoint.load_stored(spec).float() for spec in checkpoint.specs}, assign=True
    )
    arguments, losses = MiniCpmVProcessor.open(path).arguments, []
    for sample in samples:
        tensors = {name: torch.from_numpy(value) for name, value in arguments(sample).items()}
        with torch.inference_mode():
            logits = model(**tensors, use_cache=False).logits[0].double().numpy()
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        positions = range(sample.answer_start, len(sample.tokens))
        losses.append(np.array([-np.log(chances[index - 1, sample.tokens[index]]) for index in positions]))
    return losses


def test_losses_are_those_of_the_plain_model(tiny_checkpoint: Path, tiny_samples: list[Inputs]) -> None:
    """Every answer token of every sample, with and without images, in float64 and in order."""
    losses = losses_of(open_runner(tiny_checkpoint, 1), tiny_samples)
    for loss, expected, sample in zip(losses, plain_losses(tiny_checkpoint, tiny_samples), tiny_samples, strict=True):
        assert loss.dtype == np.float64
        assert len(loss) == len(sample.tokens) - sample.answer_start
        np.testing.assert_allclose(loss, expected, atol=2e-6)


def test_reading_from_disk_gives_exactly_the_same_and_says_so(
    tiny_checkpoint: Path, tiny_samples: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little memory the weights are read block by block, in waves: not a bit differs, and the notes tell."""
    resident = open_runner(tiny_checkpoint, 1)
    monkeypatch.setattr(torch_runner, "RESIDENT_SHARE", 1000 / psutil.virtual_memory().available)
    streamed = open_runner(tiny_checkpoint, 1)
    assert "held in memory" in resident.notes[0]
    assert "read from disk" in streamed.notes[0]
    assert not streamed.weights.kept
    for one, other in zip(losses_of(resident, tiny_samples), losses_of(streamed, tiny_samples), strict=True):
        assert np.array_equal(one, other)


def test_never_more_than_one_block_is_in_float(tiny_checkpoint: Path, tiny_samples: list[Inputs]) -> None:
    """Whenever a weight is read, no block other than the one it belongs to holds real values."""
    runner = open_runner(tiny_checkpoint, 1)
    read, filled = runner.weights.floats, []

    def watched(spec: object) -> torch.Tensor:
        filled.append(sum(not block_is_empty(block) for block in runner.native.blocks))
        return read(spec)  # type: ignore[arg-type]

    object.__setattr__(runner, "weights", SimpleNamespace(floats=watched, kept={}))
    losses_of(runner, tiny_samples)
    assert len(filled) >= len(runner.native.module.state_dict())
    assert set(filled) == {0}
    assert all(block_is_empty(block) for block in runner.native.blocks)


def block_is_empty(block: nn.Module) -> bool:
    return all(parameter.untyped_storage().nbytes() <= 4 for parameter in block.parameters())


def test_waves_are_bounded_by_tokens_and_keep_the_order(tiny_samples: list[Inputs]) -> None:
    """Nothing is lost or moved; a sample longer than a wave gets one of its own."""
    many = tiny_samples * 5
    cut = list(waves(many, 100))
    assert [sample for wave in cut for sample in wave] == many
    assert all(len(wave) == 1 or sum(len(sample.tokens) for sample in wave) <= 100 for wave in cut)
    assert max(map(len, cut)) > 1
    assert list(waves([], 100)) == []


def test_an_unquantized_artifact_gives_the_losses_of_its_source(
    tiny_checkpoint: Path, tiny_full: Quantized, tiny_samples: list[Inputs]
) -> None:
    """Kept weights, the transposed one included, come back as they were."""
    runner = open_runner(tiny_full.path, 1)
    assert "dequantized" in runner.notes[0]
    source = open_runner(tiny_checkpoint, 1)
    for one, other in zip(losses_of(runner, tiny_samples), losses_of(source, tiny_samples), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("artifact", ["tiny_int4", "tiny_quality"])
def test_a_quantized_artifact_is_dequantized(
    artifact: str, request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """int4 grids and ggml grids run; the losses move a little, not a lot."""
    quantized: Quantized = request.getfixturevalue(artifact)
    losses = np.concatenate(losses_of(open_runner(quantized.path, 1), tiny_samples))
    original = np.concatenate(losses_of(open_runner(tiny_checkpoint, 1), tiny_samples))
    assert 1e-4 < np.abs(losses - original).max() < 3


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    """The error is the one that any other command gives."""
    with pytest.raises(CheckpointError, match=r"no `config.json`"):
        open_runner(tmp_path, 1)


@pytest.mark.parametrize(
    ("weight", "block"),
    [("language.layers.1.mlp.up", "language.layers.1"), ("head", "head"), ("projector.kv", "projector")],
)
def test_the_sample_and_the_block_of_the_first_value_that_is_no_number_are_named(
    weight: str, block: str, tiny_checkpoint: Path, tiny_samples: list[Inputs]
) -> None:
    """Text passes where only images overflow."""
    runner = open_runner(tiny_checkpoint, 1)
    stored = runner.weights.kept[weight]
    assert isinstance(stored, torch.Tensor)
    runner.weights.kept[weight] = stored * torch.inf
    sample = "image-56" if block == "projector" else "text"
    with pytest.raises(EngineError, match=f"`{sample}`: values that are not finite first come out of `{block}`"):
        losses_of(runner, tiny_samples[:2])
