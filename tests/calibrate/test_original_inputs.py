"""Inputs of the original model, in memory or in a file, and their differences from the quantized model."""

from collections.abc import Container, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mcpmq.calibrate import observers
from mcpmq.calibrate.observers import NO_HOLD_OUT, HessianObserver, TokenModalities
from mcpmq.calibrate.original_inputs import OriginalInputs, StageValues
from mcpmq.calibrate.paired_inputs import NewObserver, QuantizedBlock
from mcpmq.calibrate.stages import Stage, Stream
from mcpmq.errors import DatasetError
from mcpmq.execution.chunked_matmul import serial_map
from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import ReplayStopped
from mcpmq.execution.spilling import MIN_NBYTES, SpillFile

MODULES: dict[str, str | None] = {"first.weight": None, "last.weight": None}
FIRST, LAST = Stage(("first.weight",)), Stage(("last.weight",), Stream("", 0.5))


class Block(nn.Module):
    """A linear that runs for every part of a sample, and one whose output is added to the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 20, bias=False), nn.Linear(20, 12, bias=False)

    def forward(self, sample: Tensor, parts: int) -> Tensor:
        hidden = torch.cat([self.first(part) for part in sample.chunk(parts)])
        output: Tensor = sample + 0.5 * self.last(hidden.tanh())
        sample.zero_()  # a later layer may reuse the memory of its inputs
        return output


@dataclass(frozen=True)
class Samples:
    """A Replay of a block; the sample of index n runs the first matrix parts[n] times."""

    block: nn.Module
    inputs: list[Tensor]
    parts: list[int]

    def __call__(self, only: Container[int] | None = None) -> None:
        for index, (sample, parts) in enumerate(zip(self.inputs, self.parts, strict=True)):
            if only is None or index in only:
                with suppress(ReplayStopped):
                    self.block(sample.clone(), parts)

    def waiting(self) -> list[int]:
        return list(range(len(self.inputs)))

    advance = advance_with_hooks = __call__


@pytest.fixture(params=["memory", "file"])
def spill(request: pytest.FixtureRequest) -> Iterator[SpillFile | None]:
    """No file, or one for tensors of any size."""
    if request.param == "memory":
        yield None
        return
    with SpillFile.create() as file:
        yield file


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Two samples in the quantized model, and the same two with other hidden states in the original one."""
    monkeypatch.setattr("mcpmq.execution.spilling.MIN_NBYTES", 1)
    torch.manual_seed(1)
    return Samples(Block(), [torch.randn(rows, 12) for rows in (3, 8, 3, 8)], [1, 4, 1, 4])


def record(replay: Samples, spill: SpillFile | None) -> OriginalInputs:
    samples = [(2, 0), (3, 1)]
    return OriginalInputs.record(*(replay.block, [FIRST, LAST], MODULES, replay, samples, spill), contains_blocks=False)


@torch.inference_mode()
def test_values_are_those_of_every_run(replay: Samples, spill: SpillFile | None) -> None:
    """The last stage has the stream; later changes of the inputs in place do not matter."""
    found = record(replay, spill)

    for sample in (0, 1):
        inputs, calls = replay.inputs[sample + 2], replay.parts[sample]
        first, last = found.values[FIRST][sample], found.values[LAST][sample]
        assert (first.calls, last.calls) == (calls, 2)
        assert torch.equal(first.load()["first.weight"], inputs)
        [stream] = last.load().values()
        assert torch.equal(stream, replay.block(inputs.clone(), calls))


@torch.inference_mode()
def test_places_in_the_file_are_used_again(replay: Samples) -> None:
    """A second block does not make the file longer than the first one did."""
    with SpillFile.create() as spill:
        lengths = []
        for _ in range(2):
            found = record(replay, spill)
            for stage in (FIRST, LAST):
                found.free(stage)
            lengths.append(spill.end[0])

    assert lengths == [4 * 2 * (3 + 8) * 12] * 2
    assert not found.values


@torch.inference_mode()
def test_small_tensors_stay_in_memory(replay: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of less than 64 KiB does not go to the file."""
    monkeypatch.setattr("mcpmq.execution.spilling.MIN_NBYTES", MIN_NBYTES)
    with SpillFile.create() as spill:
        record(replay, spill)
        assert (spill.end[0], MIN_NBYTES) == (0, 65536)


def quantized_block(replay: Samples, original: OriginalInputs) -> QuantizedBlock:
    """Return the block with other weights, and the first two samples."""
    weights = {name: 1.5 * value.detach() for name, value in replay.block.named_parameters()}
    return QuantizedBlock(replay.block, weights, replay, [0, 1], original)


def new_observer() -> NewObserver:
    """Return a function that creates observers of tokens of weight 1."""
    modalities = TokenModalities(lambda count: torch.zeros(count, dtype=torch.uint8), torch.ones(4))
    return partial(HessianObserver.create, modalities, serial_map, NO_HOLD_OUT, CPU)


@torch.inference_mode()
def test_a_sample_with_fewer_runs_than_in_the_original_model_is_an_error(replay: Samples) -> None:
    """Its inputs would be missing in the statistics."""
    original = record(replay, None)
    replay.parts[1] = 2

    with pytest.raises(DatasetError, match="`first.weight` 2 times in the quantized model and 4 times in the original"):
        quantized_block(replay, original).collect_stats(FIRST, MODULES, {}, new_observer())


@torch.inference_mode()
def test_a_sample_that_runs_a_stage_in_the_quantized_model_only_is_an_error(replay: Samples) -> None:
    """It has no inputs to compare with."""
    original = record(replay, None)
    original.values[FIRST][0] = StageValues(0, {})

    with pytest.raises(DatasetError, match="1 times in the quantized model and 0 times in the original one"):
        quantized_block(replay, original).collect_stats(FIRST, MODULES, {}, new_observer())


@pytest.mark.parametrize("stage", [FIRST, LAST])
@torch.inference_mode()
def test_statistics_have_all_runs_of_a_sample(
    replay: Samples, spill: SpillFile | None, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hessian and the products with the difference equal brute-force sums over both samples."""
    monkeypatch.setattr(observers, "bfloat16_matmul", nullcontext)  # rounds where a CPU has it
    original = record(replay, spill)
    before = {sample: original.values[stage][sample].load() for sample in (0, 1)}
    block = quantized_block(replay, original)

    [stats] = block.collect_stats(stage, MODULES, {}, new_observer())[stage.parameters[0]]

    first, last = (block.weights[f"{name}.weight"] for name in ("first", "last"))
    gram, products = torch.zeros_like(stats.gram), torch.zeros(())
    for sample in (0, 1):
        inputs, [value] = replay.inputs[sample], before[sample].values()
        hidden = (inputs @ first.T).tanh()
        x = inputs if stage is FIRST else hidden
        difference = value - inputs if stage is FIRST else (value - inputs - 0.5 * hidden @ last.T) / 0.5
        gram, products = gram + x.T @ x, products + x.T @ difference
    assert stats.drift is not None
    torch.testing.assert_close(stats.gram, gram)
    torch.testing.assert_close(stats.drift.products, products)
    assert stats.token_counts["vision"] == 11


def test_values_of_no_sample_are_empty() -> None:
    """A process without samples records nothing."""
    values = StageValues(0, {})
    values.free()
    assert values.load() == {}
