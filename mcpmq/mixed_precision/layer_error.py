"""What each scheme would do to each weight, told from what the weight sees of calibration samples.

The error that rounding makes in a matrix's outputs is tr(E G E^T), with G the Gram matrix of its inputs and E what
rounding changes (as in GPTQ, arXiv 2210.17323). Errors of unlike weights of a block are made comparable by what damage
to one weight at a time does to the outputs of the block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.forward import (
    component_of,
    fed_by,
    is_head,
    labels_of,
    pass_samples,
    read_samples,
)
from mcpmq.calibrate.observers import observe
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample
from mcpmq.errors import CalibrationError
from mcpmq.execution import torch_model
from mcpmq.execution.chunked_matmul import Each, all_threads, torch_threads
from mcpmq.execution.device import CPU, told
from mcpmq.execution.torch_model import NativeModel
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.plan import block_of
from mcpmq.recipe import Modalities
from mcpmq.rounding import ROUNDERS, RounderName
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import FloatScheme, GgmlScheme, IntegerScheme, Scheme
from mcpmq.system.progress import Progress

TRIED = IntegerScheme(4, 32)  # the damage that is done on purpose, rounded to nearest
ROWS = 128  # of a matrix, evenly spread, that stand for all of it
FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Damage:
    """Of one weight. `share`: of the change in its block's outputs when all of the block's weights are on TRIED.
    `errors`: of its own outputs on each scheme, against those on TRIED."""

    block: str
    share: float
    errors: Mapping[str, float]  # by the scheme as recipes write it; `keep` is 0


def damages(
    checkpoint: Checkpoint,
    schemes: Mapping[str, Sequence[Scheme | None]],
    method: RounderName,
    samples: Sequence[Sample],
    progress: Progress,
    device: torch.device = CPU,
) -> dict[str, Damage]:
    """The damage of every scheme that is asked about to every weight, by common name, rounded by a method.

    In memory: one block in float32 and its Gram matrices, and of every sample its hidden states before one block.

    Raises:
        CalibrationError: a matrix saw nothing of the samples, or what is not finite.
    """
    processor = checkpoint.family.processor(checkpoint.path)
    inputs = read_samples(processor, samples, progress)
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs, device)
    ticks = iter(progress(list(model.blocks), told("trying schemes", device)))
    with all_threads(device) as each, torch.inference_mode():
        looking = _Looking(checkpoint, model, schemes, method, each, ticks, torch.get_num_threads())
        pass_samples(model, processor, inputs, each, looking.load, looking.visit)
    for _ in ticks:
        pass
    return looking.found


@dataclass(slots=True)
class _Looking:
    """The blocks of the original, each looked at while the samples wait before it."""

    checkpoint: Checkpoint
    model: NativeModel
    schemes: Mapping[str, Sequence[Scheme | None]]
    method: RounderName
    each: Each
    ticks: Iterator[nn.Module]
    threads: int
    found: dict[str, Damage] = field(default_factory=dict)

    def load(self, block: nn.Module) -> None:
        """Fill a block with the original's weights."""
        next(self.ticks, None)
        if not is_head(self.model, block):
            self.model.fill(block, lambda spec: torch_model.floats_of(self.checkpoint.load(spec), spec))

    def visit(self, block: nn.Module, replay: Callable[[], None]) -> None:
        """Try every scheme on every weight of a block."""
        asked = {name: spec for name, spec in self.model.blocks[block].items() if spec.name in self.schemes}
        matrices = {name: spec for name, spec in asked.items() if spec.role == "matrix"}
        labels = labels_of(component_of(self.model, block), Modalities().model_dump(), self.model.device)
        feeders = {name: fed_by(self.checkpoint.family, spec, name) for name, spec in matrices.items()}
        seen = observe(block, feeders, replay, labels, self.each) if matrices else {}
        if unseen := [spec.name for name, spec in matrices.items() if name not in seen]:
            raise unseen_by_samples(unseen[0])
        shares = self._shares(block, asked, replay) if len(asked) > 1 else dict.fromkeys(asked, 1.0)
        with torch_threads(self.threads):
            for name, spec in asked.items():
                errors = self._errors(spec, seen.pop(name, ()))
                self.found[spec.name] = Damage(block_of(spec.name), shares[name], errors)

    def _shares(
        self, block: nn.Module, asked: Mapping[str, TensorSpec], replay: Callable[[], None]
    ) -> dict[str, float]:
        """How much of a block's change each weight makes, when one at a time is on TRIED."""
        before: list[Tensor] = []
        _replay(block, replay, before.append)
        changes = {}
        for name, spec in asked.items():
            kept = block.get_parameter(name)
            _put(block, name, _tried(kept, spec))
            after = _Change(iter(before))
            _replay(block, replay, after.add)
            _put(block, name, kept)
            changes[name] = after.squares
        total = sum(changes.values())
        return {name: change / total if total else 1 / len(changes) for name, change in changes.items()}

    def _errors(self, spec: TensorSpec, stats: Sequence[LayerStats]) -> dict[str, float]:
        weight = self.checkpoint.load(spec)
        tried = _error(weight, TRIED, "rtn", stats)
        found = {}
        for scheme in self.schemes[spec.name]:
            error = 0.0 if scheme is None else _error(weight, scheme, self.method if stats else "rtn", stats)
            found[str(scheme or "keep")] = error / tried if tried else 0.0
        return found


@dataclass(slots=True)
class _Change:
    """The sum of squares of what is not as it was, of outputs in the same order."""

    before: Iterator[Tensor]
    squares: float = 0.0

    def add(self, output: Tensor) -> None:
        self.squares += float((output - next(self.before)).square().sum())


def unseen_by_samples(name: str) -> CalibrationError:
    """What nothing can be told of."""
    return CalibrationError(f"`{name}` saw nothing of the calibration samples", "add samples that pass through it")


def _replay(block: nn.Module, replay: Callable[[], None], see: Callable[[Tensor], object]) -> None:
    """Let all samples pass through a block and look at what comes out, in their order."""
    with block.register_forward_hook(lambda _, __, output: see(_first(output).detach().float())):
        replay()


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else _first(next(iter(output)))


def _put(block: nn.Module, name: str, value: Tensor) -> None:
    block.load_state_dict({name: value}, strict=False, assign=True)


def _tried(held: Tensor, spec: TensorSpec) -> Tensor:
    """A parameter as the module holds it, on TRIED."""
    weight = held.T if spec.transposed else held
    rounded = dequantize(ROUNDERS["rtn"](weight.contiguous(), TRIED, None))
    return (rounded.T.contiguous() if spec.transposed else rounded).to(held.device)


def _error(weight: Tensor, scheme: Scheme, method: RounderName, stats: Sequence[LayerStats]) -> float:
    """tr(E G E^T) of a weight [out, in], summed over equal shares of its rows where each sees something else; without
    statistics, as for tables, the sum of squares."""
    shares = weight.chunk(len(stats)) if stats else [weight]
    seen: Sequence[LayerStats | None] = stats or [None]
    return sum(map(partial(_error_of_share, scheme, method), shares, seen))


def _error_of_share(scheme: Scheme, method: RounderName, weight: Tensor, stats: LayerStats | None) -> float:
    step = -(-len(weight) // ROWS)
    rows = weight[::step].float()
    if isinstance(scheme, FloatScheme):
        rounded = rows.to(FLOATS[scheme.dtype]).float()
    else:
        assert isinstance(scheme, IntegerScheme | GgmlScheme), "formats with grids of one kind leave nothing to choose"
        rounded = dequantize(ROUNDERS[method](rows, scheme, stats))
    errors = (rounded - rows).double()
    if stats is not None:
        errors = errors.to(stats.gram.device)
    squares = errors.square() if stats is None else (errors @ stats.gram.double()) * errors
    return float(squares.sum()) * len(weight) / len(rows)
