"""Select the quantization method of a block by its reconstruction error on held-out samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.exchange import ONE_PROCESS, Exchange, add_by_sample, sample_index
from mcpmq.calibrate.observers import TokenModalities
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError
from mcpmq.execution import torch_model
from mcpmq.execution.chunked_matmul import ParallelMap
from mcpmq.execution.torch_model import StoredWeight, TorchModel
from mcpmq.families.blocks import block_name
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor, move
from mcpmq.recipe import Recipe
from mcpmq.rounding import RoundingMethod
from mcpmq.rounding.stats import InputStats

HOLDOUT_EVERY = 5  # one of five samples of each modality is held out
CHUNK_WEIGHTS, CHUNK_ROWS = 1 << 24, 512  # of a matrix: read at a time, multiplied at a time

_Outputs = tuple[int, Tensor, Tensor]  # of one sample: its index, output rows, and the weights of its tokens

BlockLoss = Callable[[Mapping[str, StoredWeight], Mapping[str, float]], float]
"""Maps the weights of a block, by common name, to the squared error of its outputs over the square of its outputs.

The second argument maps weights to the largest magnitude of their inputs: inputs of these nn.Linear modules are
rounded to 8 bits, -127 to 127 steps, because SmoothQuant scales are meant for such inputs.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to quantize a block: a rounding method, with or without smoothing."""

    method: RoundingMethod
    smoothing: str | None = None

    def __str__(self) -> str:
        return f"{self.smoothing}+{self.method}" if self.smoothing else self.method


def candidates(recipe: Recipe, can_smooth: bool) -> tuple[Candidate, ...]:
    """Return the candidates of a recipe for one block, the simplest first.

    `can_smooth` is true for blocks with a smoothing mapping.
    """
    methods: tuple[RoundingMethod, ...] = ("rtn-imatrix", "gptq") if recipe.method == "auto" else (recipe.method,)
    plain = tuple(map(Candidate, methods))
    if recipe.smooth == "none" or not can_smooth:
        return plain
    return (*plain, *(Candidate(method, recipe.smooth) for method in methods))


def held_out_samples(modalities: Sequence[str]) -> frozenset[int]:
    """Return the indices of held-out samples: every fifth of each modality, and at least one where there are two."""
    indices = {
        modality: [index for index, other in enumerate(modalities) if other == modality] for modality in modalities
    }
    held_out = (group[HOLDOUT_EVERY - 1 :: HOLDOUT_EVERY] or group[-1:] for group in indices.values() if len(group) > 1)
    return frozenset(index for group in held_out for index in group)


def output_mse(
    model: TorchModel,
    block: nn.Module,
    replay_original: Callable[[], None],
    replay: Callable[[], None],
    modalities: TokenModalities,
    exchange: Exchange = ONE_PROCESS,
) -> BlockLoss:
    """Return the loss of a block against its outputs in `replay_original` now, while it holds its original weights.

    Output rows are weighted by token, over the samples of `replay`, the same as those of `replay_original`.

    Raises:
        DatasetError: the held-out samples have zero total weight.
    """
    originals: list[_Outputs] = []

    def record(rows: Tensor) -> None:
        originals.append(
            (sample_index.get(), rows, modalities.token_weights(modalities.modality_ids(len(rows))).to(rows.device))
        )

    with _on_output(block, record):
        replay_original()
    name = block_name(next(iter(model.blocks[block].values())).name)
    _check_weight(name, add_by_sample(exchange, [(at, float(one.double().sum())) for at, _, one in originals]))
    squares = [(at, _weighted_square(rows, weights)) for at, rows, weights in originals]
    total = add_by_sample(exchange, squares) or 1.0  # outputs may be all zero

    def loss(weights: Mapping[str, StoredWeight], input_abs_max: Mapping[str, float]) -> float:
        model.load_block(block, lambda spec: torch_model.to_float(weights[spec.name], spec, model.device))
        with _int8_inputs(block, model.blocks[block], input_abs_max):
            error = add_by_sample(exchange, _squared_errors(block, replay, originals))
        model.unload_block(block)
        return error / total

    return loss


def _squared_errors(
    block: nn.Module, replay: Callable[[], None], originals: Sequence[_Outputs]
) -> list[tuple[int, float]]:
    """Return the squared error of every sample of this process, with its index."""
    remaining, errors = iter(originals), list[tuple[int, float]]()

    def compare(rows: Tensor) -> None:
        index, original, weights = next(remaining)
        errors.append((index, _weighted_square(rows - original, weights)))

    with _on_output(block, compare):
        replay()
    return errors


def hessian_mse(checkpoint: Checkpoint, spec: TensorSpec, stats: InputStats, parallel_map: ParallelMap) -> BlockLoss:
    """Return the loss of the head from the Hessian of the held-out samples; its outputs do not fit into memory.

    With E the quantization error and H = X^T X the loss is tr(E H E^T) / tr(W H W^T), equal to that of the outputs.

    Raises:
        DatasetError: the held-out samples have zero total weight.
    """

    def squared_outputs(quantized: QTensor | None) -> float:
        """Return tr(E H E^T), or tr(W H W^T) without a quantized weight."""
        squares, row = [], 0
        for weight in checkpoint.load_rows(spec, CHUNK_WEIGHTS):
            rows = slice(row, row := row + len(weight))
            matrix = weight.to(stats.gram.device).float()
            if quantized is not None:
                matrix = dequantize(move(quantized.slice_rows(rows), matrix.device)).sub_(matrix)
            squares.append(_trace(matrix, stats.gram, parallel_map))
        return sum(squares)

    _check_weight(spec.name, stats.total_weight)
    total = squared_outputs(None) or 1.0  # outputs may be all zero

    def loss(weights: Mapping[str, StoredWeight], _: Mapping[str, float]) -> float:
        quantized = weights[spec.name]
        assert isinstance(quantized, QTensor)
        return squared_outputs(quantized) / total

    return loss


def _check_weight(name: str, total: float) -> None:
    if total == 0:
        raise DatasetError(
            f"`{name}`: the held-out calibration samples have zero total weight",
            "add samples, or raise their token weights",
        )


def _weighted_square(rows: Tensor, weights: Tensor) -> float:
    return float(weights.double() @ rows.square().sum(-1, dtype=torch.float64))


def _trace(matrix: Tensor, gram: Tensor, parallel_map: ParallelMap) -> float:
    """Return tr(M G M^T)."""
    starts = range(0, len(matrix), CHUNK_ROWS)
    squares = [0.0] * len(starts)

    def add_chunk(index: int) -> None:
        rows = matrix[starts[index] : starts[index] + CHUNK_ROWS]
        squares[index] = float((rows @ gram).mul_(rows).sum(dtype=torch.float64))

    parallel_map(add_chunk, range(len(starts)))
    return sum(squares)


@contextmanager
def _on_output(block: nn.Module, callback: Callable[[Tensor], None]) -> Iterator[None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        callback((output[0] if isinstance(output, tuple) else output).flatten(0, -2))

    with block.register_forward_hook(hook):
        yield


@contextmanager
def _int8_inputs(
    block: nn.Module, specs: Mapping[str, TensorSpec], input_abs_max: Mapping[str, float]
) -> Iterator[None]:
    with ExitStack() as hooks:
        for name, spec in specs.items():
            module = block.get_submodule(name.rpartition(".")[0])
            if input_abs_max.get(spec.name) and isinstance(module, nn.Linear):
                step = input_abs_max[spec.name] / 127
                hooks.enter_context(module.register_forward_pre_hook(partial(_round_to_int8, step)))
        yield


def _round_to_int8(step: float, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs, *others = args
    return (inputs / step).round_().clamp_(-127, 127).mul_(step), *others
