"""Estimate the memory of a calibration run from file headers and encoded samples, before any weight is read."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import torch

from mcpmq.calibrate.observers import HELD_OUT_TOKENS
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError
from mcpmq.execution.device import CPU, available_nbytes
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.families.inputs import Inputs
from mcpmq.families.residual import stream_reader
from mcpmq.plan import block_name
from mcpmq.system.table import format_megabytes

FLOAT_NBYTES = 4
COLOR_CHANNELS = 3
TARGET_WEIGHTS = 1 << 27  # rounded at a time
STATES_PER_SAMPLE = 2  # hidden states before the current block, and before the first block


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of all samples' pixels and hidden states, and of the largest block, which is named."""

    pixel_nbytes: int
    state_nbytes: int
    block_nbytes: int
    block_name: str

    @property
    def total_nbytes(self) -> int:
        return self.pixel_nbytes + self.state_nbytes + self.block_nbytes


def estimate_memory(
    specs: Sequence[TensorSpec],
    architecture: Architecture,
    inputs: Sequence[Inputs],
    with_hessian: Collection[str],
    with_original: bool = False,
) -> MemoryEstimate:
    """Estimate the memory of a run over these samples.

    `with_hessian` are the weights, by common name, whose Hessians are collected. `with_original`: the samples pass
    through the original model, too.
    """
    pixels = sum(part.shape[0] * part.shape[1] for one in inputs for part in one.slices)
    language_states = sum(len(one.tokens) for one in inputs) * architecture.language.hidden_size
    vision_states, pixel_nbytes = 0, 0
    if vision := architecture.vision:
        vision_states = pixels // vision.patch_size**2 * vision.hidden_size
        # as decoded, in bytes, and as the model's input, in floats
        pixel_nbytes = COLOR_CHANNELS * (1 + FLOAT_NBYTES * max(1, vision.temporal_patch_size))
    state_nbytes = STATES_PER_SAMPLE * FLOAT_NBYTES * max(vision_states, language_states) * (1 + with_original)
    name, block_nbytes = _largest_block(specs, with_hessian, with_original)
    return MemoryEstimate(pixel_nbytes * pixels, state_nbytes, block_nbytes, name)


def _largest_block(specs: Sequence[TensorSpec], with_hessian: Collection[str], with_original: bool) -> tuple[str, int]:
    blocks: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        blocks.setdefault(block_name(spec.name), []).append(spec)
    block_nbytes = _staged_block_nbytes if with_original else _block_nbytes
    sizes = {name: block_nbytes(block, with_hessian) for name, block in blocks.items()}
    return max(sizes.items(), key=lambda item: item[1])


def _block_nbytes(specs: Sequence[TensorSpec], with_hessian: Collection[str]) -> int:
    """Return the bytes of the Hessians and the block's weights, or of the Hessians, a Cholesky factor and one weight.

    Hessians of equal width count once, because most layers of equal width share their inputs. Held-out inputs
    are kept with each Hessian.
    """
    weights = [FLOAT_NBYTES * prod(spec.shape) for spec in specs]
    columns = {spec.shape[0 if spec.transposed else 1] for spec in specs if spec.name in with_hessian}
    hessians = [FLOAT_NBYTES * count**2 for count in columns]
    held_out = FLOAT_NBYTES * HELD_OUT_TOKENS * sum(columns)
    return sum(hessians) + held_out + max(sum(weights), max(hessians, default=0) + max(weights))


def _staged_block_nbytes(specs: Sequence[TensorSpec], with_hessian: Collection[str]) -> int:
    """Return the bytes of the block's weights, original and rounded, and of the largest stage of its matrices.

    A stage has a Hessian, its Cholesky factor, the products of the drift, held-out inputs, and the target of rows.
    """
    names, stages = {spec.name for spec in specs}, []
    for spec in (spec for spec in specs if spec.name in with_hessian):
        rows, columns = reversed(spec.shape) if spec.transposed else spec.shape
        drift = columns if stream_reader(spec.name, names) is None else rows
        held_out, target = HELD_OUT_TOKENS * (columns + drift), 2 * min(rows * columns, TARGET_WEIGHTS)
        stages.append(2 * columns**2 + columns * drift + held_out + target)
    weights = sum(prod(spec.shape) for spec in specs)
    return FLOAT_NBYTES * (weights + (weights + max(stages) if stages else 0))


def check_memory(
    checkpoint: Checkpoint,
    inputs: Sequence[Inputs],
    with_hessian: Collection[str] = (),
    device: torch.device = CPU,
    with_original: bool = False,
) -> None:
    """Check that a run over these samples fits into the memory of a device.

    Raises:
        DatasetError: the run needs more memory than is available now.
    """
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, with_hessian, with_original)
    available = available_nbytes(device)
    if estimate.total_nbytes <= available:
        return
    sample_nbytes = estimate.pixel_nbytes + estimate.state_nbytes
    fitting = max(0, len(inputs) * (available - estimate.block_nbytes) // sample_nbytes)
    parts = (
        f"{format_megabytes(estimate.pixel_nbytes)} for pixels, {format_megabytes(estimate.state_nbytes)} for hidden"
        f" states, {format_megabytes(estimate.block_nbytes)} for block `{estimate.block_name}`"
    )
    other_device = "use a machine with more memory" if device == CPU else "use `--device cpu`"
    raise DatasetError(
        f"{len(inputs):,} samples need about {format_megabytes(estimate.total_nbytes)} of memory and"
        f" {format_megabytes(available)} are available on `{device}`: {parts}",
        f"use about {fitting:,} samples of this size" if fitting else other_device,
    )
