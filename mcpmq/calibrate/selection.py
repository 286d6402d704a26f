"""Which of several ways to round a block keeps its outputs closest, on samples that none of them has seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.observers import Labels
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import CalibrationError
from mcpmq.execution import torch_model
from mcpmq.execution.chunked_matmul import Each
from mcpmq.execution.torch_model import NativeModel, Stored
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.recipe import Recipe
from mcpmq.rounding import RounderName
from mcpmq.rounding.stats import LayerStats

ONE_IN = 5  # samples of each kind is held out
PIECE_WEIGHTS, PIECE_ROWS = 1 << 24, 512  # of a matrix: read at a time, multiplied at a time

Judge = Callable[[Mapping[str, Stored], Mapping[str, float]], float]
"""From the weights of a block, by common name, to the square error of its outputs over the square of the outputs.

The linears of matrices that the second argument names have their inputs rounded to 8 bits, -127 to 127 steps, with
these largest magnitudes: what is smoothed for such inputs is judged with them.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to round a block."""

    rounder: RounderName
    smoothing: str | None = None

    def __str__(self) -> str:
        return f"{self.smoothing}+{self.rounder}" if self.smoothing else self.rounder


def candidates(recipe: Recipe, smoothing: bool) -> tuple[Candidate, ...]:
    """What a recipe would have tried on a block, the simplest first; `smoothing`: whether scales can move in it."""
    rounders: tuple[RounderName, ...] = ("importance", "gptq") if recipe.round == "best" else (recipe.round,)
    plain = tuple(map(Candidate, rounders))
    if recipe.smooth == "none" or not smoothing:
        return plain
    return (*plain, *(Candidate(rounder, recipe.smooth) for rounder in rounders))


def held_out(kinds: Sequence[str]) -> frozenset[int]:
    """The numbers of the samples that judge: every fifth of each kind, and at least one where there are two."""
    numbers = {kind: [number for number, one in enumerate(kinds) if one == kind] for kind in kinds}
    judges = (of[ONE_IN - 1 :: ONE_IN] or of[-1:] for of in numbers.values() if len(of) > 1)
    return frozenset(number for some in judges for number in some)


def by_outputs(model: NativeModel, block: nn.Module, replay: Callable[[], None], labels: Labels) -> Judge:
    """A judge of what a block, which holds its original weights now, puts out for the samples of a replay.

    Raises:
        CalibrationError: nothing that the samples put out weighs anything.
    """
    originals: list[tuple[Tensor, Tensor]] = []  # rows and what they weigh, sample after sample
    with _hearing(block, lambda rows: originals.append((rows, labels.weights[labels.of(len(rows)).long()]))):
        replay()
    whole = _weighing(sum(_square(rows, weights) for rows, weights in originals))

    def judge(stored: Mapping[str, Stored], reaches: Mapping[str, float]) -> float:
        model.fill(block, lambda spec: torch_model.floats_of(stored[spec.name], spec))
        with _inputs_in_8_bits(block, model.blocks[block], reaches):
            error = _square_error(block, replay, originals)
        model.empty(block)
        return error / whole

    return judge


def _square_error(block: nn.Module, replay: Callable[[], None], originals: Sequence[tuple[Tensor, Tensor]]) -> float:
    left, errors = iter(originals), []

    def compare(rows: Tensor) -> None:
        original, weights = next(left)
        errors.append(_square(rows - original, weights))

    with _hearing(block, compare):
        replay()
    return sum(errors)


def by_gram(checkpoint: Checkpoint, spec: TensorSpec, stats: LayerStats, each: Each) -> Judge:
    """A judge of a head: its Gram matrix of the held-out samples stands for its outputs, which are too many to hold.

    Raises:
        CalibrationError: nothing that the samples show it weighs anything.
    """

    def square(quantized: QTensor | None) -> float:
        errors, row = [], 0
        for weight in checkpoint.load_rows(spec, PIECE_WEIGHTS):
            rows = slice(row, row := row + len(weight))
            left = weight.float() if quantized is None else dequantize(quantized.rows_of(rows)).sub_(weight)
            errors.append(_square_through(left.to(stats.gram.device), stats.gram, each))
        return sum(errors)

    whole = _weighing(square(None))

    def judge(stored: Mapping[str, Stored], _: Mapping[str, float]) -> float:
        quantized = stored[spec.name]
        assert isinstance(quantized, QTensor)
        return square(quantized) / whole

    return judge


def _weighing(whole: float) -> float:
    if whole == 0:
        raise CalibrationError(
            "the calibration samples that are held out to judge by weigh nothing", "add samples, or weigh more of them"
        )
    return whole


def _square(rows: Tensor, weights: Tensor) -> float:
    return float(weights.double() @ rows.square().sum(-1, dtype=torch.float64))


def _square_through(left: Tensor, gram: Tensor, each: Each) -> float:
    """The trace of E G E^T."""
    starts = range(0, len(left), PIECE_ROWS)
    errors = [0.0] * len(starts)

    def measure(number: int) -> None:
        rows = left[starts[number] : starts[number] + PIECE_ROWS]
        errors[number] = float((rows @ gram).mul_(rows).sum(dtype=torch.float64))

    each(measure, range(len(starts)))
    return sum(errors)


@contextmanager
def _hearing(block: nn.Module, hear: Callable[[Tensor], None]) -> Iterator[None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        hear((output[0] if isinstance(output, tuple) else output).flatten(0, -2))

    with block.register_forward_hook(hook):
        yield


@contextmanager
def _inputs_in_8_bits(
    block: nn.Module, specs: Mapping[str, TensorSpec], reaches: Mapping[str, float]
) -> Iterator[None]:
    with ExitStack() as hooks:
        for name, spec in specs.items():
            module = block.get_submodule(name.rpartition(".")[0])
            if reaches.get(spec.name) and isinstance(module, nn.Linear):  # others take inputs in ways of their own
                hooks.enter_context(module.register_forward_pre_hook(partial(_in_8_bits, reaches[spec.name] / 127)))
        yield


def _in_8_bits(step: float, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    inputs, *others = args
    return (inputs / step).round_().clamp_(-127, 127).mul_(step), *others
