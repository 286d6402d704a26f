"""What it takes in memory that samples pass block by block, told from headers and encoded samples before they do."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import torch

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CalibrationError
from mcpmq.execution.device import CPU, available_nbytes
from mcpmq.families.family import Architecture, Inputs, TensorSpec
from mcpmq.plan import block_of
from mcpmq.system.table import megabytes

FLOAT_NBYTES = 4
CHANNELS = 3  # of a pixel
STATES = 2  # of a sample: what its next block takes, and what its first took


@dataclass(frozen=True, slots=True)
class Needed:
    """Bytes: the pixels and the hidden states of all samples, and the block that takes most, by its name."""

    pixels: int
    states: int
    block: int
    block_name: str

    @property
    def total(self) -> int:
        return self.pixels + self.states + self.block


def needed(
    specs: Sequence[TensorSpec], architecture: Architecture, inputs: Sequence[Inputs], summed: Collection[str]
) -> Needed:
    """What passing these samples takes, with a Gram matrix for what the weights in `summed` see, by common name."""
    pixels = sum(part.shape[0] * part.shape[1] for one in inputs for part in one.slices)
    seen, passed, a_pixel = 0, sum(len(one.tokens) for one in inputs) * architecture.language.hidden, 0
    if vision := architecture.vision:
        seen = pixels // vision.patch**2 * vision.hidden
        a_pixel = CHANNELS * (1 + FLOAT_NBYTES * max(1, vision.frames))  # as it was read and as the model takes it
    blocks: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        blocks.setdefault(block_of(spec.name), []).append(spec)
    sizes = {name: _block_nbytes(held, summed) for name, held in blocks.items()}
    name = max(sizes, key=lambda name: sizes[name])
    return Needed(a_pixel * pixels, STATES * FLOAT_NBYTES * max(seen, passed), sizes[name], name)


def _block_nbytes(specs: Sequence[TensorSpec], summed: Collection[str]) -> int:
    """Gram matrices beside the block's floats, or beside one's factor and its weight; those of inputs that are as wide
    count once, for most are the same."""
    floats = [FLOAT_NBYTES * prod(spec.shape) for spec in specs]
    columns = {spec.shape[0 if spec.transposed else 1] for spec in specs if spec.name in summed}
    grams = [FLOAT_NBYTES * count**2 for count in columns]
    return sum(grams) + max(sum(floats), max(grams, default=0) + max(floats))


def refuse_what_does_not_fit(
    checkpoint: Checkpoint, inputs: Sequence[Inputs], summed: Collection[str] = (), device: torch.device = CPU
) -> None:
    """Refuse to let samples pass a checkpoint for which there is too little memory.

    Raises:
        CalibrationError: more is needed than is available now.
    """
    need = needed(checkpoint.specs, checkpoint.architecture, inputs, summed)
    available = available_nbytes(device)
    if need.total > available:
        fitting = max(0, len(inputs) * (available - need.block) // (need.pixels + need.states))
        parts = f"{megabytes(need.pixels)} pixels, {megabytes(need.states)} hidden states"
        elsewhere = "use a machine with more memory" if device == CPU else "name `--device cpu`"
        raise CalibrationError(
            f"{len(inputs):,} samples take about {megabytes(need.total)} of memory, {megabytes(available)} are"
            f" available on `{device}`: {parts}, {megabytes(need.block)} for `{need.block_name}` and what it sees",
            f"use about {fitting:,} samples of this kind" if fitting else elsewhere,
        )
