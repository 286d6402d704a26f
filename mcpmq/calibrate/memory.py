"""Estimate the memory of a calibration run from file headers and encoded samples, before any weight is read.

Hidden states that do not fit into memory go to a temporary file.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

import psutil
import torch

from mcpmq.calibrate.observers import HELD_OUT_TOKENS, TILE_COLUMNS
from mcpmq.calibrate.requirements import needs_calibration
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import TOKENS_PER_SAMPLE
from mcpmq.errors import DatasetError
from mcpmq.execution.device import CPU, available_nbytes
from mcpmq.families.audio_shape import SAMPLES_PER_MEL_FRAME
from mcpmq.families.blocks import block_name, is_expert
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.families.inputs import Inputs, slice_size
from mcpmq.families.residual import LAYER_OUTPUT, stream_reader
from mcpmq.plan import Plan
from mcpmq.rounding import gptq
from mcpmq.rounding.weight import GPTQ_CHUNK_WEIGHTS
from mcpmq.system.table import format_megabytes

FLOAT_NBYTES, STORED_NBYTES = 4, 2  # in memory, and in the checkpoint
HEAD, SHARED_INPUTS = "head", (".k", ".v", "mlp.up")
COLOR_CHANNELS = 3
TARGET_WEIGHTS = 1 << 27  # rounded at a time
ROUNDING_ARRAYS = 12  # in float32, of the rows that a thread rounds at a time
LATER_LIBRARIES_NBYTES = 250_000_000  # of transformers and of compiled kernels, which are loaded after the check
STATES_AT_EXPERTS = 3  # the residual stream, the inputs of the experts, and the sum of their outputs
WORKER_LIBRARIES_NBYTES = 500_000_000  # of a process of a cluster that has loaded all libraries, with those of Ray
STATES_PER_SAMPLE = 2  # hidden states before the current block, and before the first block
RECORDED_STATES = 4  # of the original model inside of a block: before and after its attention and its MLP


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of all samples' pixels and hidden states, and of the largest block, which is named.

    image_nbytes: pixels as decoded, in bytes, rotary embeddings, and states inside of a layer with experts.
    state_nbytes: hidden states, and pixels as the model's input, in floats. sample_nbytes: those of the largest sample,
    in memory while it passes a block.
    """

    image_nbytes: int
    state_nbytes: int
    sample_nbytes: int
    block_nbytes: int
    block_name: str

    @property
    def total_nbytes(self) -> int:
        """Bytes with all hidden states in memory."""
        return self.spilled_nbytes - self.sample_nbytes + self.state_nbytes

    @property
    def spilled_nbytes(self) -> int:
        """Bytes with the hidden states of waiting samples in a file."""
        return self.image_nbytes + self.sample_nbytes + self.block_nbytes


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
    states = [_state_nbytes(architecture, one, 1 + with_original) for one in inputs]
    images = sum(COLOR_CHANNELS * _pixels(one) + _position_nbytes(architecture, one) for one in inputs)
    images += (1 + with_original) * sum(_routed_nbytes(architecture, one) for one in inputs)
    name, block_nbytes = _largest_block(specs, with_hessian, with_original)
    return MemoryEstimate(images, sum(states), max(states, default=0), block_nbytes, name)


def _pixels(inputs: Inputs) -> int:
    return sum(prod(slice_size(part)) for part in inputs.slices)


def _state_nbytes(architecture: Architecture, inputs: Inputs, passes: int) -> int:
    """Return the bytes of a sample's hidden states before the current and the first block, of pixels and of audio.

    With two passes also those of the first one inside of a block.
    """
    states, pixel_values = len(inputs.tokens) * architecture.language.hidden_size, 0
    if vision := architecture.vision:
        states = max(states, _pixels(inputs) // vision.patch_size**2 * vision.hidden_size)
        pixel_values = COLOR_CHANNELS * max(1, vision.temporal_patch_size) * _pixels(inputs)
    if audio := architecture.audio:
        mel_frames = sum(map(len, inputs.audio)) // SAMPLES_PER_MEL_FRAME
        states = max(states, mel_frames // 2 * audio.hidden_size)
        pixel_values += mel_frames * (audio.num_mel_bins + audio.hidden_size)
    recorded = RECORDED_STATES * states * (passes - 1)
    return FLOAT_NBYTES * (passes * (STATES_PER_SAMPLE * states + pixel_values) + recorded)


def _position_nbytes(architecture: Architecture, inputs: Inputs) -> int:
    """Return the bytes of a sample's rotary embeddings, which stay in memory."""
    return FLOAT_NBYTES * 2 * len(inputs.tokens) * architecture.language.head_dim


def _routed_nbytes(architecture: Architecture, inputs: Inputs) -> int:
    """Return the bytes of the states of a sample inside of a layer with experts, which stay in memory."""
    shape = architecture.language
    if shape.experts is None:
        return 0
    states = STATES_AT_EXPERTS + bool(shape.experts.shared_intermediate_size)
    return FLOAT_NBYTES * states * len(inputs.tokens) * shape.hidden_size


def _largest_block(specs: Sequence[TensorSpec], with_hessian: Collection[str], with_original: bool) -> tuple[str, int]:
    blocks: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        blocks.setdefault(block_name(spec.name), []).append(spec)
    sizes = {}
    for name, block in blocks.items():  # the head, and experts, have targets of their own
        in_stages = with_original and name != HEAD and not is_expert(name)
        sizes[name] = (_staged_block_nbytes if in_stages else _block_nbytes)(block, with_hessian)
    return max(sizes.items(), key=lambda item: item[1])


def _block_nbytes(specs: Sequence[TensorSpec], with_hessian: Collection[str]) -> int:
    """Return the bytes while the samples pass a block, or while its weights are rounded: the larger number.

    Keys and values share the Hessian of the queries, and two matrices of an MLP theirs. Held-out inputs, and inputs
    that the Hessian does not have yet, are kept with each Hessian. A factor takes the memory of its Hessian.
    """
    observed = [spec for spec in specs if spec.name in with_hessian and not spec.name.endswith(SHARED_INPUTS)]
    columns = [_columns(spec) for spec in observed]
    statistics = sum(FLOAT_NBYTES * (count**2 + 2 * HELD_OUT_TOKENS * count) for count in columns)
    return statistics + max(sum(map(_loaded_nbytes, specs)), _rounding_nbytes(specs, columns) if columns else 0)


def _columns(spec: TensorSpec) -> int:
    return spec.shape[0 if spec.transposed else 1]


def _staged_block_nbytes(specs: Sequence[TensorSpec], with_hessian: Collection[str]) -> int:
    """Return the bytes of the block's weights and of the largest stage of its matrices.

    A stage has a Hessian, whose factor takes its memory, the products of the drift, and held-out inputs. While the
    samples pass, there are inputs that the Hessian does not have yet; while rows are rounded, their target, and of all
    weights the codes. After the last stage of a layer no weights in floats are left.
    """
    names, weights = {spec.name for spec in specs}, sum(prod(spec.shape) for spec in specs)
    stages = []
    for spec in (spec for spec in specs if spec.name in with_hessian):
        rows, columns = reversed(spec.shape) if spec.transposed else spec.shape
        reader = stream_reader(spec.name, names)
        drift = columns if reader is None else rows
        statistics = FLOAT_NBYTES * (columns**2 + columns * drift + HELD_OUT_TOKENS * (columns + drift))
        waiting = FLOAT_NBYTES * HELD_OUT_TOKENS * (columns + drift)
        chunk = min(rows * columns, TARGET_WEIGHTS)
        rounding = weights + (STORED_NBYTES + FLOAT_NBYTES) * chunk + _rounded_rows_nbytes(columns)
        if reader != LAYER_OUTPUT:
            rounding += FLOAT_NBYTES * weights
        stages.append(statistics + max(FLOAT_NBYTES * weights + waiting, rounding))
    return max(stages, default=FLOAT_NBYTES * weights)


def _loaded_nbytes(spec: TensorSpec) -> int:
    """Return the bytes of a weight in the forward pass: the head has none, a table the used rows after it is read."""
    if spec.name == HEAD:
        return 0
    return (STORED_NBYTES if spec.role == "table" else FLOAT_NBYTES) * prod(spec.shape)


def _rounding_nbytes(specs: Sequence[TensorSpec], columns: Collection[int]) -> int:
    """Return the bytes of the codes of a block, of a chunk of a weight, and of the rows that all threads round."""
    weights = [prod(spec.shape) for spec in specs]
    return sum(weights) + STORED_NBYTES * min(max(weights), GPTQ_CHUNK_WEIGHTS) + _rounded_rows_nbytes(max(columns))


def _rounded_rows_nbytes(columns: int) -> int:
    """Return the bytes of the rows of a matrix that all threads round at a time."""
    chunk = min(gptq.CHUNK_ROWS * columns, max(gptq.CHUNK_WEIGHTS, columns))
    return ROUNDING_ARRAYS * FLOAT_NBYTES * torch.get_num_threads() * chunk


def forward_nbytes(plan: Plan, samples: int, workers: int) -> int:
    """Estimate the memory of a worker that passes its samples through a model, from headers alone."""
    tensors = [spec for spec in plan.checkpoint.specs if spec.role == "matrix"]
    _, block_nbytes = _largest_block(tensors, (), plan.recipe.has_model_targets)
    passes = 1 + plan.recipe.has_model_targets
    recorded = RECORDED_STATES * (passes - 1)
    states = FLOAT_NBYTES * (passes * STATES_PER_SAMPLE + recorded) * plan.checkpoint.architecture.language.hidden_size
    calibrated = {tensor.name for tensor in plan.tensors if needs_calibration(plan, tensor)}
    columns = [_columns(spec) for spec in tensors if spec.name in calibrated]
    return (
        WORKER_LIBRARIES_NBYTES
        + block_nbytes
        + passes * _shared_nbytes(max(columns, default=0), workers)
        + -(-samples // workers) * TOKENS_PER_SAMPLE * states
    )


def _shared_nbytes(columns: int, workers: int) -> int:
    """Return the bytes of a worker for the inputs of this number of columns: its tiles of the Hessian, the inputs that
    the Hessian does not have yet, those that are kept, and those of two samples, one of which is sent.
    """
    tiles = max(columns * min(TILE_COLUMNS, columns), columns**2 // 2 // (workers + 1))
    return FLOAT_NBYTES * (tiles + 2 * (HELD_OUT_TOKENS + TOKENS_PER_SAMPLE) * columns)


def must_spill(
    checkpoint: Checkpoint,
    inputs: Sequence[Inputs],
    with_hessian: Collection[str] = (),
    device: torch.device = CPU,
    with_original: bool = False,
    memory_limit: int | None = None,
) -> bool:
    """Return whether a run over these samples fits only with the hidden states of waiting samples in a file.

    with_original: whether the samples pass through the original model, too. memory_limit: largest number of bytes of
    this process, on the CPU; None for the available memory.

    Raises:
        DatasetError: the run needs more memory than the limit, or than is available now.
    """
    estimate = estimate_memory(checkpoint.specs, checkpoint.architecture, inputs, with_hessian, with_original)
    available = available_nbytes(device)
    if memory_limit is not None:
        available = min(available, memory_limit - psutil.Process().memory_info().rss - LATER_LIBRARIES_NBYTES)
    if estimate.total_nbytes <= available:
        return False
    if device == CPU and estimate.spilled_nbytes <= available:
        return True
    raise _memory_error(estimate, len(inputs), available, device, memory_limit)


def _memory_error(
    estimate: MemoryEstimate, samples: int, available: int, device: torch.device, memory_limit: int | None
) -> DatasetError:
    states = estimate.sample_nbytes if device == CPU else estimate.state_nbytes
    samples_nbytes = estimate.image_nbytes + (0 if device == CPU else states)
    fixed = estimate.block_nbytes + (states if device == CPU else 0)
    fitting = max(0, samples * (available - fixed) // samples_nbytes) if samples_nbytes else 0
    parts = (
        f"{format_megabytes(estimate.image_nbytes)} for images, {format_megabytes(states)} for hidden states"
        f"{' of one sample' if device == CPU else ''}, {format_megabytes(estimate.block_nbytes)} for block"
        f" `{estimate.block_name}`"
    )
    total = estimate.spilled_nbytes if device == CPU else estimate.total_nbytes
    limit = "" if memory_limit is None else f" within the limit of {format_megabytes(memory_limit)}"
    other_device = "use a machine with more memory" if device == CPU else "use `--device cpu`"
    if memory_limit is not None:
        other_device = "raise `--memory-limit`"
    return DatasetError(
        f"{samples:,} samples need about {format_megabytes(total)} of memory and {format_megabytes(max(0, available))}"
        f" are available on `{device}`{limit}: {parts}",
        f"use about {fitting:,} samples of this size" if fitting else other_device,
    )
