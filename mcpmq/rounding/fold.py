"""Fold powers of two between neighboring layers, exactly, so that scales represent the weights of both.

A model with `up` times 2^-15 and `down` times 2^15 computes the same function, but fp16 scales represent neither of
them well. The mappings are those of smoothing; weights change only if a scale is inexact or too large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from mcpmq.families.family import SmoothingMapping
from mcpmq.grids.limits import ScaleLimits, scale_limits
from mcpmq.plan import Plan, TensorPlan
from mcpmq.rounding.magnitudes import GroupMagnitudes
from mcpmq.rounding.smoothing import Channels, SmoothingScales, WeightScaling, weight_scalings
from mcpmq.rounding.weight import is_exact

# Powers of two from which on folds balance a whole mapping, the magnitude of a norm, and one channel.
MIN_IMBALANCE, MIN_NORM_EXPONENT, MIN_CHANNEL_IMBALANCE = 4, 6, 6
DEAD_PRODUCT = 2.0**-10  # of the typical product of a channel's magnitudes; smaller ones are not balanced
MAX_EXPONENT = 120  # of a factor in float32
MAX_SHIFT = 32  # of a whole weight, if its magnitudes need more than balance
MAX_LOSS = 16  # errors of a group that is lost as a whole, over its largest magnitude


def fold_mappings(plan: Plan, block: str) -> list[SmoothingMapping]:
    """Return the smoothing mappings of a block, norms first, between weights of which one has limited scales."""
    tensors = {tensor.name: tensor for tensor in plan.blocks[block]}
    patterns = [one for one in plan.checkpoint.family.smoothing_mappings if one.component == block.partition(".")[0]]
    mappings = [pattern.in_block(block) for pattern in patterns]
    return sorted(
        (one for one in mappings if _is_usable(one, tensors)),
        key=lambda one: tensors[one.smooth_layer].spec.role == "matrix",
    )


def _is_usable(mapping: SmoothingMapping, tensors: Mapping[str, TensorPlan]) -> bool:
    names = (mapping.smooth_layer, *mapping.balance_layers)
    if not all(name in tensors for name in names):
        return False
    # 1 + weight times a power of two, minus 1, is not exact in 16 bits.
    stored = tensors[mapping.smooth_layer]
    is_exact = not mapping.offset_norm or str(stored.scheme or stored.dtype) in ("f32", "float32")
    return is_exact and any(_limits(tensors[name]) for name in names)


def _limits(tensor: TensorPlan) -> ScaleLimits | None:
    return scale_limits(tensor.scheme, tensor.matrix_shape[1]) if len(tensor.spec.shape) == 2 else None


def find_folds(plan: Plan, block: str, weights: Mapping[str, Tensor]) -> list[SmoothingScales]:
    """Return powers of two for the mappings of a block, so that scales represent all of its weights.

    `weights` are the original weights by common name, [out, in]. The result is empty if scales represent the
    weights without folds, or if folds cannot make them do so.
    """
    mappings = [one for one in fold_mappings(plan, block) if one.smooth_layer in weights]
    search = _FoldSearch(plan, {tensor.name: tensor for tensor in plan.blocks[block]}, weights, mappings)
    if not search.is_needed():
        return []
    balanced: list[SmoothingScales] = []
    for mapping in mappings:
        balanced += search.balance(mapping, balanced)
    folds = [*balanced, *search.shift(balanced)]
    return folds if search.represents(folds) else []


@dataclass(frozen=True, slots=True)
class _Channels:
    """The magnitudes of a mapping's channels, float64 [channels], and weighted errors of their scales."""

    rows: Tensor
    columns: Tensor
    row_error: Tensor
    column_error: Tensor

    @property
    def product(self) -> Tensor:
        return self.rows * self.columns

    def live(self) -> Tensor:
        """Return which channels contribute to the output, compared with the typical channel."""
        return self.product > DEAD_PRODUCT * self._typical_product()

    def have_errors(self) -> bool:
        """Return whether inexact scales change the output by more than a step of the typical channel."""
        typical = self._typical_product()
        changes = (self.row_error * self.columns).maximum(self.column_error * self.rows)
        return bool((changes > typical).any())

    def _typical_product(self) -> Tensor:
        nonzero = self.product[self.product > 0]
        return nonzero.median() if len(nonzero) else self.product.new_zeros(())


@dataclass(frozen=True, slots=True)
class _FoldSearch:
    plan: Plan
    tensors: Mapping[str, TensorPlan]
    weights: Mapping[str, Tensor]
    mappings: Sequence[SmoothingMapping]

    def is_needed(self) -> bool:
        """Return whether the scale of a group of one of the weights is inexact or too large."""
        return any(
            bool(limits.outside(limits.group_magnitudes(self.weights[name])).any()) for name, limits in self.limited()
        )

    def limited(self) -> list[tuple[str, ScaleLimits]]:
        """Return the weights of all mappings that have limited scales."""
        names = dict.fromkeys(name for one in self.mappings for name in (one.smooth_layer, *one.balance_layers))
        return [(name, limits) for name in names if (limits := _limits(self.tensors[name]))]

    def scaled(self, name: str, folds: Sequence[SmoothingScales]) -> Tensor:
        """Return a weight after folds, float32."""
        return weight_scalings(folds).get(name, WeightScaling()).apply(self.weights[name].float().cpu())

    def balance(self, mapping: SmoothingMapping, folds: Sequence[SmoothingScales]) -> list[SmoothingScales]:
        """Return the fold that brings rows and columns of all channels to equal magnitudes, and a norm near 1."""
        channels = self._channels(mapping, folds)
        if not channels.have_errors():
            return []
        live = channels.live()
        imbalance = (channels.rows.log2() - channels.columns.log2()) / 2
        typical = imbalance[live].median()
        is_norm = self.weights[mapping.smooth_layer].dim() == 1
        common = channels.rows[live].log2().median() if is_norm else typical
        exponents = torch.zeros_like(imbalance)
        if abs(float(common)) >= (MIN_NORM_EXPONENT if is_norm else MIN_IMBALANCE):
            exponents += common.round()
        unequal = live & ((imbalance - typical).abs() >= MIN_CHANNEL_IMBALANCE)
        exponents[unequal] += (imbalance - typical).round()[unequal]
        return [self._fold(mapping, exponents)] if exponents.any() else []

    def _fold(self, mapping: SmoothingMapping, exponents: Tensor) -> SmoothingScales:
        columns = self.weights[mapping.balance_layers[0]].shape[1]
        scale = exponents.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp2().float()
        return SmoothingScales(mapping, 0.0, scale, self._channel_layout(mapping).expand(scale, columns))

    def _channel_layout(self, mapping: SmoothingMapping) -> Channels:
        rows = len(self.weights[mapping.smooth_layer])
        return Channels.of_mapping(mapping, rows, self.plan.checkpoint.architecture.language.head_dim)

    def _channels(self, mapping: SmoothingMapping, folds: Sequence[SmoothingScales]) -> _Channels:
        chunk, chunks = mapping.row_chunk
        rows, row_error = (part.chunk(chunks)[chunk] for part in self._row_magnitudes(mapping, folds))
        layout = self._channel_layout(mapping)
        columns, column_error = torch.zeros(2, layout.count, dtype=torch.float64)
        for name in mapping.balance_layers:
            weight = self.scaled(name, folds)
            columns = columns.maximum(layout.reduce(weight.abs().amax(0).double(), use_max=True))
            column_error = column_error.maximum(layout.reduce(self._errors(name, weight, dim=0), use_max=True))
        return _Channels(rows, columns, row_error, column_error)

    def _row_magnitudes(self, mapping: SmoothingMapping, folds: Sequence[SmoothingScales]) -> tuple[Tensor, Tensor]:
        """Return the largest magnitude of every row of the smooth layer with its bias, and the error of its scales."""
        name = mapping.smooth_layer
        weight = self.scaled(name, folds)
        magnitude = (weight.reshape(len(weight), -1) + float(mapping.offset_norm)).abs().amax(1).double()
        if f"{name}.bias" in self.tensors:
            magnitude = magnitude.maximum(self.scaled(f"{name}.bias", folds).abs().double())
        return magnitude, self._errors(name, weight, dim=1)

    def _errors(self, name: str, weight: Tensor, dim: int) -> Tensor:
        """Return the largest error of inexact scales for every column (dim 0) or row (dim 1), over a step of the grid.

        It is infinite where a value is too large, and 0 where scales are exact.
        """
        size = weight.shape[1 - dim] if weight.dim() > 1 else len(weight)
        limits = _limits(self.tensors[name])
        if limits is None:
            return torch.zeros(size, dtype=torch.float64)
        groups = limits.group_magnitudes(weight).double()
        small = (groups > 0) & (groups < limits.min_magnitude)
        # A small group is lost as a whole, with at most this many times its magnitude.
        errors = torch.where(small, (MAX_LOSS * groups).clamp(max=limits.scale_error) * 2**limits.bits, 0.0)
        errors = torch.where(groups > limits.max_magnitude, torch.inf, errors).amax(dim)
        return errors if dim else errors.repeat_interleave(limits.group_columns)[:size]

    def shift(self, folds: Sequence[SmoothingScales]) -> list[SmoothingScales]:
        """Return folds of whole weights, as small as possible, that bring typical magnitudes within the limits."""
        ranges = {name: self._magnitudes(name, folds).exponent_range() for name, _ in self.limited()}
        found = []
        for connected in _connected(self.mappings):
            for mapping, exponent in zip(connected, _smallest_shift(connected, ranges), strict=True):
                if exponent:
                    channels = self._channel_layout(mapping).count
                    found.append(self._fold(mapping, torch.full((channels,), float(exponent))))
        return found

    def represents(self, folds: Sequence[SmoothingScales]) -> bool:
        """Return whether scales represent all weights after folds, and weights that are kept are exact."""
        for name, scaling in weight_scalings(folds).items():
            if name not in self.tensors:  # a layer without bias
                continue
            tensor, scaled = self.tensors[name], scaling.apply(self.weights[name].float().cpu())
            if tensor.scheme is None and not is_exact(scaled, tensor):
                return False
            if _limits(tensor) and not self._magnitudes(name, folds).are_represented:
                return False
        return True

    def _magnitudes(self, name: str, folds: Sequence[SmoothingScales]) -> GroupMagnitudes:
        tensor = self.tensors[name]
        magnitudes = GroupMagnitudes.create(name, tensor.scheme, tensor.matrix_shape[1])
        assert magnitudes
        magnitudes.add(self.scaled(name, folds))
        return magnitudes


def _connected(mappings: Sequence[SmoothingMapping]) -> list[list[SmoothingMapping]]:
    """Group mappings that share a layer."""
    groups: list[tuple[set[str], list[SmoothingMapping]]] = []
    for mapping in mappings:
        names, members = {mapping.smooth_layer, *mapping.balance_layers}, [mapping]
        for group in [one for one in groups if one[0] & names]:
            groups.remove(group)
            names, members = names | group[0], [*group[1], *members]
        groups.append((names, members))
    return [members for _, members in groups]


def _smallest_shift(mappings: Sequence[SmoothingMapping], ranges: Mapping[str, tuple[int, int]]) -> tuple[int, ...]:
    """Return an exponent for each mapping, with the least sum of magnitudes, that brings all weights into range."""
    none = (0,) * len(mappings)
    for total in range(MAX_SHIFT + 1):
        for shift in product(range(-total, total + 1), repeat=len(mappings)):
            if sum(map(abs, shift)) == total and _in_range(mappings, shift, ranges):
                return shift
    return none


def _in_range(
    mappings: Sequence[SmoothingMapping], shift: Sequence[int], ranges: Mapping[str, tuple[int, int]]
) -> bool:
    exponents: dict[str, int] = {}
    for mapping, exponent in zip(mappings, shift, strict=True):
        for name in mapping.balance_layers:
            exponents[name] = exponents.get(name, 0) + exponent
        exponents[mapping.smooth_layer] = exponents.get(mapping.smooth_layer, 0) - exponent
    return all(ranges[name][0] <= exponent <= ranges[name][1] for name, exponent in exponents.items() if name in ranges)
