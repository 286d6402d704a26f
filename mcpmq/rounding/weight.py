"""Quantize, convert or keep one weight of a plan, read from the checkpoint in chunks of rows."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from math import prod
from typing import Self

import torch
from torch import Tensor

from mcpmq.errors import CheckpointError, ScaleError, prefix_errors
from mcpmq.execution.device import CPU
from mcpmq.grids import codebook
from mcpmq.plan import Plan, TensorPlan
from mcpmq.qtensor import CodebookTensor, QTensor, concat_rows
from mcpmq.rounding import ROUNDING_FUNCTIONS, RoundingMethod
from mcpmq.rounding.cholesky import ShrinkageWarning
from mcpmq.rounding.magnitudes import GroupMagnitudes, check_double_quant
from mcpmq.rounding.shrinkage import ShrinkageChoice, choose_shrinkage, nearest_is_better
from mcpmq.rounding.smoothing import WeightScaling
from mcpmq.rounding.stats import InputStats
from mcpmq.rounding.target import Target
from mcpmq.scheme import CodebookScheme, FloatScheme, GgmlScheme, GridScheme
from mcpmq.system.read_ahead import read_ahead

NO_SCALING = WeightScaling()
THREAD_CHUNK_WEIGHTS = 1 << 21  # of every thread, read at a time; rows are quantized independently
THREAD_SEARCH_CHUNK_WEIGHTS = 1 << 20  # where scales are searched: smaller chunks take less memory and hardly more time
GPTQ_CHUNK_WEIGHTS = 1 << 27  # larger, because the Hessian is factored again for every chunk
FLOAT_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """A weight as it is stored, and deviations from the plan.

    method: the rounding method of at least a part of the rows; None without statistics.
    shrinkage: of the Hessian, for every part of the rows with its own statistics; None for round to nearest.
    has_inexact_scales: whether a scale has an error of more than one step of the grid.
    """

    stored: QTensor | Tensor
    method: RoundingMethod | None = None
    shrinkage: tuple[float | None, ...] = ()
    deviations: tuple[str, ...] = ()
    has_inexact_scales: bool = False


def quantize_weight(
    plan: Plan,
    tensor: TensorPlan,
    stats: Sequence[InputStats] = (),
    method: RoundingMethod = "rtn",
    scaling: WeightScaling = NO_SCALING,
    loaded: Tensor | None = None,
) -> RoundedWeight:
    """Quantize, convert or keep a weight [out, in] as planned, after scales are applied.

    `stats` are the input statistics for the rounding method: one for all rows, or several for equal parts of the rows.
    Without statistics, and where all inputs are zero, the weight is rounded to nearest. A weight on a grid is rounded
    on the device of its statistics, where `loaded`, its values in float32, may already be; it is else read from the
    checkpoint.

    Raises:
        CheckpointError: a value is not finite.
        ScaleError: the scales of the scheme do not represent the magnitudes of the weight.
        McpmqError: another error of the rounding method. All errors name the weight.
    """
    with prefix_errors(f"`{tensor.name}`"), _collect_warnings() as deviations:
        magnitudes = GroupMagnitudes.create(tensor.name, tensor.scheme, _row_weights(tensor))
        source = _WeightSource(
            plan, tensor, scaling, magnitudes, deviations, stats[0].gram.device if stats else CPU, loaded
        )
        choices: list[ShrinkageChoice | None] = []
        stored = _round(source, stats, method, choices)
        if magnitudes and (deviation := magnitudes.deviation()):
            deviations.append(deviation)
    dead = [not part.has_inputs for part in stats]
    worse = [bool(choice and choice.prefers_nearest) for choice in choices]
    deviations += _nearest_deviations(dead, "the calibration inputs are all zero")
    deviations += _nearest_deviations(worse, f"{method} has a larger error on held-out samples")
    nearest = [any(reasons) for reasons in zip(dead, worse or repeat(False), strict=False)]
    used = ("rtn" if all(nearest) else method) if stats else None
    shrinkage = tuple(choice.shrinkage if choice and not choice.prefers_nearest else None for choice in choices)
    return RoundedWeight(stored, used, shrinkage, tuple(deviations), bool(magnitudes and magnitudes.are_limited))


def _nearest_deviations(parts: Sequence[bool], reason: str) -> list[str]:
    """Return a note if some equal parts of the rows are rounded to nearest instead of the requested method."""
    if not any(parts):
        return []
    rows = "" if all(parts) else f"{sum(parts)} of {len(parts)} equal parts of its rows "
    return [f"{rows}rounded to nearest: {reason}"]


def _row_weights(tensor: TensorPlan) -> int:
    return tensor.matrix_shape[1] if tensor.is_quantized else prod(tensor.spec.shape[1:])


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Yield a list that gets the text of shrinkage warnings at the end; other warnings are issued again."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ShrinkageWarning)
        yield texts
    for warning in caught:
        if issubclass(warning.category, ShrinkageWarning):
            texts.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@dataclass(frozen=True, slots=True)
class _WeightSource:
    """Reads a weight, scaled and checked."""

    plan: Plan
    tensor: TensorPlan
    scaling: WeightScaling
    magnitudes: GroupMagnitudes | None
    deviations: list[str]
    device: torch.device = CPU  # of chunks
    loaded: Tensor | None = None  # the weight in float32

    def load(self) -> Tensor:
        """Return the whole weight in its dtype; scales must not change its dtype."""
        weight = self.plan.checkpoint.load(self.tensor.spec)
        return self._prepare(weight, 0)

    def chunks(self, stats: int, method: RoundingMethod) -> Iterator[tuple[Tensor, int]]:
        """Yield chunks of rows, equal ones for several statistics, and the index of their first row."""
        first_row = 0
        for rows in self._load_chunks(stats, method):
            yield self._prepare(rows.to(self.device), first_row), first_row
            first_row += len(rows)

    def _load_chunks(self, stats: int, method: RoundingMethod) -> Iterable[Tensor]:
        checkpoint, spec = self.plan.checkpoint, self.tensor.spec
        if self.loaded is not None:
            step = -(-len(self.loaded) // stats) if stats > 1 else GPTQ_CHUNK_WEIGHTS // self.loaded.shape[1]
            return torch.split(self.loaded, max(1, step))
        if stats > 1:
            return checkpoint.load(spec).chunk(stats)
        if method == "gptq" or self.device != CPU:
            return checkpoint.load_rows(spec, GPTQ_CHUNK_WEIGHTS)
        is_searched = isinstance(self.tensor.scheme, GgmlScheme)
        chunk_weights = THREAD_SEARCH_CHUNK_WEIGHTS if is_searched else THREAD_CHUNK_WEIGHTS
        return read_ahead(checkpoint.load_rows(spec, chunk_weights * max(2, torch.get_num_threads())))

    def _prepare(self, rows: Tensor, first_row: int) -> Tensor:
        scaled = self.scaling.apply(rows, first_row)
        if self.magnitudes is None:
            _check_finite(_is_finite(scaled), self.tensor)
        else:
            self.magnitudes.add(scaled.reshape(len(scaled), -1))
            _check_finite(self.magnitudes.are_finite, self.tensor)
            self.magnitudes.check_largest()
        return scaled


@dataclass(frozen=True, slots=True)
class WeightStream:
    """A weight that is rounded to nearest in chunks of rows; deviations are known after the last one."""

    _source: _WeightSource

    @classmethod
    def open(cls, plan: Plan, tensor: TensorPlan) -> Self:
        """Return the stream of a weight of a plan, on an integer grid or in ggml's blocks."""
        magnitudes = GroupMagnitudes.create(tensor.name, tensor.scheme, tensor.matrix_shape[1])
        return cls(_WeightSource(plan, tensor, NO_SCALING, magnitudes, []))

    def chunks(self) -> Iterator[QTensor]:
        """Yield rounded rows; only one chunk is in memory.

        Raises:
            CheckpointError: a value is not finite.
            ScaleError: the scales of the scheme do not represent the magnitudes of the weight.
        """
        source, scheme = self._source, self._source.tensor.scheme
        assert isinstance(scheme, GridScheme)
        with prefix_errors(f"`{source.tensor.name}`"):
            for rows, _ in source.chunks(0, "rtn"):
                yield ROUNDING_FUNCTIONS["rtn"](rows, scheme, None)
            if source.magnitudes and (deviation := source.magnitudes.deviation()):
                source.deviations.append(deviation)

    @property
    def deviations(self) -> tuple[str, ...]:
        """Deviations from exact scales."""
        return tuple(self._source.deviations)

    @property
    def has_inexact_scales(self) -> bool:
        """Return whether a scale has an error of more than one step of the grid."""
        return bool(self._source.magnitudes and self._source.magnitudes.are_limited)


def _round(
    source: _WeightSource,
    stats: Sequence[InputStats],
    method: RoundingMethod,
    choices: list[ShrinkageChoice | None],
) -> QTensor | Tensor:
    match source.tensor.scheme:
        case None:
            return source.load() if source.scaling.is_identity else _keep_dtype(source.load(), source.tensor)
        case FloatScheme() as scheme:
            return _convert(source.load(), source.tensor, scheme)
        case CodebookScheme() as scheme:
            chunks, rows = (chunk for chunk, _ in source.chunks(0, "rtn")), source.tensor.matrix_shape[0]
            return _double_quantize(codebook.round_to_nearest(chunks, rows, scheme), source)
        case scheme:
            return _round_on_grid(source, scheme, stats, method, choices)


def _round_on_grid(
    source: _WeightSource,
    scheme: GridScheme,
    stats: Sequence[InputStats],
    method: RoundingMethod,
    choices: list[ShrinkageChoice | None],
) -> QTensor:
    """Round a weight; `choices` gets the shrinkage for each of the statistics, None where it is not used."""

    def round_rows(rows: Tensor, first_row: int, part: int) -> QTensor:
        """Round rows with the statistics of one part."""
        inputs = stats[part] if stats and stats[part].has_inputs else None
        if inputs and len(rows) * len(stats) < source.tensor.matrix_shape[0]:
            inputs = replace(inputs, overwrite=False)  # the Hessian is needed for the next chunk
        target = Target.create(rows, inputs, first_row) if inputs and method == "gptq" else None
        if part == len(choices):  # the first rows with these statistics
            choices.append(choose_shrinkage(rows, scheme, inputs, target) if inputs and target else None)
        choice = choices[part]
        if inputs is None or (choice and choice.prefers_nearest):
            return ROUNDING_FUNCTIONS["rtn"](rows, scheme, None)
        used = replace(inputs, shrinkage=choice.shrinkage) if choice else inputs
        quantized = ROUNDING_FUNCTIONS[method](target.weight if target else rows, scheme, used)
        if choice is None or inputs.held_out_inputs is None:
            return quantized
        nearest = ROUNDING_FUNCTIONS["rtn"](rows, scheme, None)
        if not nearest_is_better(rows, quantized, nearest, inputs.held_out_inputs, target):
            return quantized
        choices[part] = replace(choice, prefers_nearest=True)
        return nearest

    parts = range(len(stats)) if len(stats) > 1 else repeat(0)
    chunks = source.chunks(len(stats), method if stats else "rtn")
    rounded = (round_rows(rows, first_row, part) for (rows, first_row), part in zip(chunks, parts, strict=False))
    return concat_rows(rounded, source.tensor.matrix_shape[0])


def _double_quantize(weight: CodebookTensor, source: _WeightSource) -> CodebookTensor:
    stored = codebook.double_quantize(weight)
    if deviation := check_double_quant(source.tensor.name, weight.scale, stored.scale):
        source.deviations.append(deviation)
    return stored


def _is_finite(weight: Tensor) -> bool:
    """Return whether no value is infinite or NaN, which the extremes are, too; they are found without a copy."""
    return weight.numel() == 0 or bool(torch.stack(weight.aminmax()).isfinite().all())


def _check_finite(is_finite: bool, tensor: TensorPlan) -> None:
    if not is_finite:
        raise CheckpointError(
            f"`{tensor.name}` (`{tensor.spec.hub_name}`) has values that are not finite", "download it again"
        )


def _keep_dtype(scaled: Tensor, tensor: TensorPlan) -> Tensor:
    """Return a scaled weight in the dtype of the checkpoint; scales of kept weights are powers of two."""
    assert is_exact(scaled, tensor), tensor.name
    return scaled.to(getattr(torch, tensor.dtype))


def is_exact(scaled: Tensor, tensor: TensorPlan) -> bool:
    """Return whether the dtype of the checkpoint represents a scaled weight exactly."""
    return torch.equal(scaled.to(getattr(torch, tensor.dtype)).to(scaled.dtype), scaled)


def _convert(weight: Tensor, tensor: TensorPlan, scheme: FloatScheme) -> Tensor:
    converted = weight.to(FLOAT_DTYPES[scheme.dtype])
    if not _is_finite(converted):
        raise ScaleError(f"`{tensor.name}` has values too large for {scheme}", f'use `"{tensor.name}" = "f32"`')
    return converted
