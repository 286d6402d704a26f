"""Smoothing: move scales between neighboring layers so that quantization errors shrink; outputs stay the same.

A column is multiplied by a scale before it is quantized, and its input is divided by the scale, so the error of the
column shrinks by the scale. AWQ (arXiv 2306.00978) derives scales from the mean magnitudes of inputs, SmoothQuant
(arXiv 2211.10438) from the largest magnitudes of inputs and weights. Both have an exponent, which is searched on the
input statistics of the calibration samples. Fitted scales minimize the error that GPTQ is expected to leave.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor

from mcpmq.execution.chunked_matmul import ParallelMap
from mcpmq.families.family import SmoothingMapping
from mcpmq.grids import dequantize, quantize
from mcpmq.rounding.fitted_scales import column_pivots, fit_log_scales
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import GridScheme, IntegerScheme

SmoothingMethod = Literal["awq", "smoothquant", "fitted"]
# No scales, which is AWQ's exponent of 0, is always a candidate too.
EXPONENTS: dict[SmoothingMethod, tuple[float, ...]] = {
    "awq": tuple(step / 20 for step in range(1, 20)),
    "smoothquant": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "fitted": (1.0,),
}
GGML_GROUP_COLUMNS = 32  # that share a scale in most of ggml's types
MAGNITUDE_EPSILON = 1e-4  # of the largest magnitude: the minimum that enters a scale
SEARCH_ROWS, SEARCH_WEIGHTS = 512, 1 << 20  # of every matrix, evenly spaced rows


@dataclass(frozen=True, slots=True)
class WeightScaling:
    """The smoothing scales of one weight: rows are divided by `row_scale`, columns multiplied by `column_scale`.

    Both are float32 [rows] and [columns]. `norm_offset` is the constant that a norm adds to its weight, 1 for an offset
    norm: the sum is divided.
    """

    row_scale: Tensor | None = None
    column_scale: Tensor | None = None
    norm_offset: float = 0.0

    @property
    def is_identity(self) -> bool:
        return self.row_scale is None and self.column_scale is None

    def apply(self, weight: Tensor, first_row: int = 0) -> Tensor:
        """Scale the rows [rows, ...] of a weight from `first_row` on, in float32; without scales nothing changes."""
        if self.column_scale is not None:
            weight = weight.float() * self.column_scale.to(weight.device)
        if self.row_scale is not None:
            scale = self.row_scale[first_row : first_row + len(weight)].to(weight.device)
            scale = scale.reshape(-1, *(1 for _ in weight.shape[1:]))
            weight = (weight.float() + self.norm_offset) / scale - self.norm_offset
        return weight


@dataclass(frozen=True, slots=True)
class SmoothingScales:
    """The scales of one smoothing mapping: float32 [channels], and float32 [columns] of the balance layers."""

    mapping: SmoothingMapping
    exponent: float  # of the method, 1 for fitted scales; 0 for powers of two that make fp16 scales exact
    channel_scale: Tensor
    column_scale: Tensor


@dataclass(frozen=True, slots=True)
class BalanceLayer:
    """A matrix whose columns take scales: its weight float32 [rows, columns], scheme and input statistics."""

    weight: Tensor
    scheme: GridScheme
    stats: InputStats

    def sample_rows(self) -> "BalanceLayer":
        """Return the layer with evenly spaced rows, for a search in bounded time."""
        rows, columns = self.weight.shape
        count = min(rows, SEARCH_ROWS, max(1, SEARCH_WEIGHTS // columns))
        indices = torch.arange(count, device=self.weight.device) * rows // count
        return replace(self, weight=self.weight[indices].contiguous())


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of a smoothing mapping; several heads of the balance layers share those of one head (GQA)."""

    count: int
    head_dim: int

    @classmethod
    def of_mapping(cls, mapping: SmoothingMapping, rows: int, head_dim: int) -> Self:
        """Return the channels of a mapping whose smooth layer has `rows` rows; only language heads share channels."""
        return cls(rows // mapping.row_chunk[1], head_dim)

    def reduce(self, columns: Tensor, use_max: bool = False) -> Tensor:
        """Reduce values [columns] to [channels]: the mean, or the maximum, over the columns of a channel."""
        heads = self._to_heads(columns)
        return (heads.amax(1) if use_max else heads.mean(1)).flatten()

    def expand(self, values: Tensor, columns: int) -> Tensor:
        """Repeat values [channels] for every column of the channel: [columns]."""
        return values.reshape(-1, 1, self._group_columns(columns)).expand(-1, columns // self.count, -1).flatten()

    def _to_heads(self, columns: Tensor) -> Tensor:
        return columns.reshape(-1, len(columns) // self.count, self._group_columns(len(columns)))

    def _group_columns(self, columns: int) -> int:
        return self.count if columns == self.count else self.head_dim


def search_scales(
    mapping: SmoothingMapping,
    method: SmoothingMethod,
    layers: Sequence[BalanceLayer],
    channels: Channels,
    weighted: bool,
    parallel_map: ParallelMap,
) -> SmoothingScales | None:
    """Return the scales with the least square error of the balance layers' outputs, or None if no scales are best.

    The error of a layer is the trace of E H E^T over a sample of its rows, with E the error of rounding to nearest and
    H the Hessian of its inputs. `smoothquant` adds the error of 8-bit inputs per tensor. With `weighted` the grids are
    chosen by the importance of the columns. `parallel_map` may distribute the exponents over threads.
    """
    exponents = [None, *EXPONENTS[method]]
    no_scales = torch.ones(channels.count, device=layers[0].weight.device)
    scales = [no_scales, *_candidate_scales(method, layers, channels)]
    samples = [(layer.sample_rows(), len(layer.weight)) for layer in layers]
    columns = layers[0].weight.shape[1]
    errors = [0.0] * len(exponents)

    def measure(candidate: int) -> None:
        column_scale = channels.expand(scales[candidate], columns)
        errors[candidate] = sum(
            rows / len(layer.weight) * _output_error(layer, column_scale, method, weighted) for layer, rows in samples
        )

    parallel_map(measure, range(len(exponents)))
    best = min(range(len(exponents)), key=errors.__getitem__)
    if (exponent := exponents[best]) is None:
        return None
    return SmoothingScales(mapping, exponent, scales[best], channels.expand(scales[best], columns))


def _candidate_scales(method: SmoothingMethod, layers: Sequence[BalanceLayer], channels: Channels) -> list[Tensor]:
    """Return the scales of every exponent."""
    stats = layers[0].stats  # all layers of a mapping have the same inputs
    if method == "fitted":
        return [fitted_scale(layers, channels)]
    if method == "awq":
        magnitude = channels.reduce(stats.abs_sum)
        return [awq_scale(magnitude, exponent) for exponent in EXPONENTS[method]]
    input_absmax = channels.reduce(stats.abs_max, use_max=True)
    column_absmax = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)
    weight_absmax = channels.reduce(column_absmax, use_max=True)
    return [smoothquant_scale(input_absmax, weight_absmax, exponent) for exponent in EXPONENTS[method]]


def fitted_scale(layers: Sequence[BalanceLayer], channels: Channels) -> Tensor:
    """Return fitted scales [channels] for some rows of every layer; 1 where a channel was always zero."""
    stats, scheme, columns = layers[0].stats, layers[0].scheme, layers[0].weight.shape[1]
    if not stats.has_inputs:
        return torch.ones(channels.count, device=stats.gram.device)
    logs = fit_log_scales(
        [layer.sample_rows().weight for layer in layers],
        column_pivots(stats),
        scheme.group_columns(columns) if isinstance(scheme, IntegerScheme) else GGML_GROUP_COLUMNS,
        partial(channels.expand, columns=columns),
        channels.reduce,
        channels.count,
    )
    return _center_geometrically(logs.exp().float().to(stats.gram.device), channels.reduce(stats.abs_sum) > 0)


def awq_scale(magnitude: Tensor, exponent: float) -> Tensor:
    """Return AWQ's scales from mean magnitudes [channels]: magnitude^exponent; 1 where a channel was always zero."""
    return _center_geometrically(_normalize(magnitude) ** exponent, magnitude > 0)


def smoothquant_scale(input_absmax: Tensor, weight_absmax: Tensor, exponent: float) -> Tensor:
    """Return SmoothQuant's scales [channels]: input_absmax^exponent / weight_absmax^(1 - exponent), 1 if one is 0."""
    scale = _normalize(input_absmax) ** exponent / _normalize(weight_absmax) ** (1 - exponent)
    return _center_geometrically(scale, (input_absmax > 0) & (weight_absmax > 0))


def _normalize(magnitude: Tensor) -> Tensor:
    largest = magnitude.max()
    return (magnitude / largest).clamp(min=MAGNITUDE_EPSILON) if largest > 0 else torch.ones_like(magnitude)


def _center_geometrically(scale: Tensor, active: Tensor) -> Tensor:
    """Divide the scales of active channels so that the product of their minimum and maximum is 1; others get 1."""
    if not active.any():
        return torch.ones_like(scale)
    middle = (scale[active].max() * scale[active].min()).sqrt()
    return torch.where(active, scale / middle, torch.ones_like(scale))


def _output_error(layer: BalanceLayer, column_scale: Tensor, method: SmoothingMethod, weighted: bool) -> float:
    weight, stats = layer.weight * column_scale, layer.stats
    importance = stats.gram.diagonal() / column_scale.square() if weighted else None
    rounded = dequantize(quantize(weight, layer.scheme, importance)).to(weight.device)
    weight_error = rounded / column_scale - layer.weight
    error = float((weight_error @ stats.gram).mul_(weight_error).sum(dtype=torch.float64))
    if method == "smoothquant":
        step = float((stats.abs_max / column_scale).max()) / 127
        # Rounding to a step has the variance step^2 / 12.
        error += stats.total_weight * step**2 / 12 * float(weight.square().sum(dtype=torch.float64))
    return error


def scale_stats(
    stats: Mapping[str, tuple[InputStats, ...]], scales: Sequence[SmoothingScales]
) -> dict[str, tuple[InputStats, ...]]:
    """Return the input statistics of a block's matrices, by common name, for inputs divided by the scales.

    Hessians are changed in place, because a second copy would need too much memory; one that several matrices share is
    changed once.
    """
    scaled = dict(stats)
    for one in scales:
        changed: dict[int, InputStats] = {}
        for name in filter(stats.__contains__, one.mapping.balance_layers):
            [inputs] = stats[name]
            if id(inputs) not in changed:
                changed[id(inputs)] = _divide_inputs(inputs, one.column_scale)
            scaled[name] = (changed[id(inputs)],)
    return scaled


def _divide_inputs(stats: InputStats, column_scale: Tensor) -> InputStats:
    column_scale = column_scale.to(stats.gram.device)
    stats.gram.div_(column_scale).div_(column_scale[:, None])
    abs_sum, minimum, maximum = (value / column_scale for value in (stats.abs_sum, stats.minimum, stats.maximum))
    held_out = None if stats.held_out_inputs is None else stats.held_out_inputs / column_scale
    return replace(stats, abs_sum=abs_sum, minimum=minimum, maximum=maximum, held_out_inputs=held_out)


def weight_scalings(scales: Sequence[SmoothingScales]) -> Mapping[str, WeightScaling]:
    """Return the scaling of every weight of a block, by common name, on the CPU; other weights are not scaled.

    Scales of the same weight are multiplied.
    """
    scaling: defaultdict[str, WeightScaling] = defaultdict(WeightScaling)
    for one in scales:
        chunk, chunks = one.mapping.row_chunk
        rows = torch.ones(chunks, len(one.channel_scale))
        rows[chunk] = one.channel_scale
        offset = float(one.mapping.offset_norm)
        for name in (one.mapping.smooth_layer, f"{one.mapping.smooth_layer}.bias"):
            row_scale = _multiply(scaling[name].row_scale, rows.flatten())
            scaling[name] = replace(scaling[name], row_scale=row_scale, norm_offset=offset)
        for name in one.mapping.balance_layers:
            column_scale = _multiply(scaling[name].column_scale, one.column_scale.cpu())
            scaling[name] = replace(scaling[name], column_scale=column_scale)
    return scaling


def _multiply(scale: Tensor | None, other: Tensor) -> Tensor:
    return other if scale is None else scale * other
