"""Estimate the quantization error of every weight on every scheme from its calibration inputs.

The error of a matrix's outputs is tr(E H E^T), with H = X^T X the Hessian of GPTQ (arXiv 2210.17323) and E the change
of the matrix. Weights of one block are made comparable by the change of the block's outputs when one of them is
quantized.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcpmq.calibrate.forward import CalibrationRun, open_calibration, run_calibration
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample
from mcpmq.errors import DatasetError, ScaleError, prefix_errors
from mcpmq.execution.device import CPU
from mcpmq.execution.layerwise import Replay
from mcpmq.families.blocks import block_name
from mcpmq.families.family import TensorSpec
from mcpmq.grids import dequantize
from mcpmq.qtensor import QTensor
from mcpmq.recipe import TokenWeights
from mcpmq.rounding import ROUNDING_FUNCTIONS, RoundingMethod
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import CodebookScheme, FloatScheme, GridScheme, IntegerScheme, Scheme
from mcpmq.system.progress import Progress
from mcpmq.system.torch_threads import torch_threads

PROBE_SCHEME = IntegerScheme(4, 32)  # the reference error, by rounding to nearest
SAMPLED_ROWS = 128  # rows of a matrix, evenly spread, that the error is computed on
FLOAT_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class QuantError:
    """The quantization error of one weight.

    share: its part of the change in its block's outputs when all weights of the block are on PROBE_SCHEME.
    errors: its output error on each scheme, as written in recipes, relative to PROBE_SCHEME; `keep` is 0.
    """

    block: str
    share: float
    errors: Mapping[str, float]


def quantization_errors(
    checkpoint: Checkpoint,
    schemes: Mapping[str, Sequence[Scheme | None]],
    method: RoundingMethod,
    samples: Sequence[Sample],
    progress: Progress,
    device: torch.device = CPU,
) -> dict[str, QuantError]:
    """Return the error of each weight in `schemes`, by common name, on each of its schemes.

    Weights of a component that no sample uses are missing. Peak memory: one block in float32 and its Hessians, and the
    hidden states of every sample before one block.

    Raises:
        DatasetError: a matrix receives no tokens or inputs that are not finite, or the samples do not fit into memory.
    """
    with_hessian = [spec.name for spec in checkpoint.specs if spec.name in schemes and spec.role == "matrix"]
    with open_calibration(checkpoint, samples, progress, device, with_hessian) as run:
        collector = _ErrorCollector(run, schemes, method)
        run_calibration(run, collector, "measuring per-scheme error")
    return collector.errors


@dataclass(frozen=True, slots=True)
class _ErrorCollector:
    """Calibration visitor that quantizes every weight of a block on every scheme; the block stays original."""

    run: CalibrationRun
    schemes: Mapping[str, Sequence[Scheme | None]]
    method: RoundingMethod
    errors: dict[str, QuantError] = field(default_factory=dict)

    def load(self, block: nn.Module) -> None:
        """Load the original weights."""
        self.run.load_original(block)

    def visit(self, block: nn.Module, replay: Replay) -> None:
        """Measure the error of every weight of a block."""
        specs = {name: spec for name, spec in self.run.model.blocks[block].items() if spec.name in self.schemes}
        matrices = {name: spec for name, spec in specs.items() if spec.role == "matrix"}
        stats = self.run.collect_stats(block, matrices, replay, TokenWeights()) if matrices else {}
        for name, parts in stats.items():
            if not parts:
                raise no_inputs_error(name)
        shares = _error_shares(block, specs, replay) if len(specs) > 1 else dict.fromkeys(specs, 1.0)
        with torch_threads(self.run.threads):
            for name, spec in specs.items():
                errors = self._scheme_errors(spec, stats.pop(spec.name, ()))
                self.errors[spec.name] = QuantError(block_name(spec.name), shares[name], errors)

    def _scheme_errors(self, spec: TensorSpec, stats: Sequence[InputStats]) -> dict[str, float]:
        weight = self.run.checkpoint.load(spec)
        errors, method = {}, self.method if stats and all(part.has_inputs for part in stats) else "rtn"
        with prefix_errors(f"`{spec.name}`"):
            reference = _output_error(weight, PROBE_SCHEME, "rtn", stats)
        for scheme in self.schemes[spec.name]:
            with prefix_errors(f"`{spec.name}`"):
                error = 0.0 if scheme is None else _output_error(weight, scheme, method, stats)
            errors[str(scheme or "keep")] = error / reference if reference else 0.0
        return errors


def no_inputs_error(name: str) -> DatasetError:
    """Return the error for a weight that no calibration sample uses."""
    return DatasetError(f"`{name}` receives no token of the calibration samples", "add samples that use it")


def _error_shares(block: nn.Module, specs: Mapping[str, TensorSpec], replay: Callable[[], None]) -> dict[str, float]:
    """Return each weight's share of the block's output error, with one weight at a time on PROBE_SCHEME."""
    originals: list[Tensor] = []
    _replay_outputs(block, replay, originals.append)
    changes = {}
    for name, spec in specs.items():
        original = block.get_parameter(name)
        _set_parameter(block, name, _quantize_parameter(original, spec))
        change = _SquaredChange(iter(originals))
        _replay_outputs(block, replay, change.add)
        _set_parameter(block, name, original)
        changes[name] = change.total
    total = sum(changes.values())
    return {name: change / total if total else 1 / len(changes) for name, change in changes.items()}


@dataclass(slots=True)
class _SquaredChange:
    """Sums the squared differences between original outputs and new ones in the same order."""

    originals: Iterator[Tensor]
    total: float = 0.0

    def add(self, output: Tensor) -> None:
        self.total += float((output - next(self.originals)).square().sum())


def _replay_outputs(block: nn.Module, replay: Callable[[], None], callback: Callable[[Tensor], object]) -> None:
    """Run all samples through a block and call back with each output, float32, in sample order."""
    with block.register_forward_hook(lambda _, __, output: callback(_first_tensor(output).detach().float())):
        replay()


def _first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else _first_tensor(next(iter(output)))


def _set_parameter(block: nn.Module, name: str, value: Tensor) -> None:
    block.load_state_dict({name: value}, strict=False, assign=True)


def _quantize_parameter(parameter: Tensor, spec: TensorSpec) -> Tensor:
    """Return a parameter rounded to PROBE_SCHEME, in the orientation of its module."""
    weight = parameter.T if spec.transposed else parameter
    rounded = _round(weight.contiguous(), PROBE_SCHEME, "rtn", None)
    return (rounded.T.contiguous() if spec.transposed else rounded).to(parameter.device)


def _output_error(weight: Tensor, scheme: Scheme, method: RoundingMethod, stats: Sequence[InputStats]) -> float:
    """Return tr(E H E^T) of a weight [out, in], or the sum of squared changes without statistics, as for tables.

    Several statistics are for equal shares of the rows, which have different inputs.
    """
    shares = weight.chunk(len(stats)) if stats else [weight]
    share_stats: Sequence[InputStats | None] = stats or [None]
    return sum(map(partial(_share_error, scheme, method), shares, share_stats))


def _share_error(scheme: Scheme, method: RoundingMethod, weight: Tensor, stats: InputStats | None) -> float:
    step = -(-len(weight) // SAMPLED_ROWS)
    rows = weight[::step].to(weight.device if stats is None else stats.gram.device).float()
    assert not isinstance(scheme, CodebookScheme), "formats with a single scheme have no candidates"
    rounded = _round(rows, scheme, method, stats)
    errors = (rounded - rows).double()
    squares = errors.square() if stats is None else (errors @ stats.gram.double()) * errors
    return float(squares.sum()) * len(weight) / len(rows)


def _round(rows: Tensor, scheme: GridScheme | FloatScheme, method: RoundingMethod, stats: InputStats | None) -> Tensor:
    return round_or_zero(rows, scheme, lambda values, grid: ROUNDING_FUNCTIONS[method](values, grid, stats))


def round_or_zero(rows: Tensor, scheme: GridScheme | FloatScheme, quantize: Callable[..., QTensor]) -> Tensor:
    """Return rounded rows, or zeros if a value is too large for the scheme, which then has the largest error."""
    if isinstance(scheme, FloatScheme):
        rounded = rows.to(FLOAT_DTYPES[scheme.dtype]).float()
        return rounded if rounded.isfinite().all() else torch.zeros_like(rows)
    try:
        return dequantize(quantize(rows, scheme))
    except ScaleError:
        return torch.zeros_like(rows)
