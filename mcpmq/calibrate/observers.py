"""Observers that accumulate the inputs of linear layers during calibration: the Hessian of GPTQ, sums and ranges.

Tokens are added in sample order, in tiles of a fixed size: equal samples give equal bytes on any number of threads.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from mcpmq.execution.chunked_matmul import ParallelMap, bfloat16_matmul, serial_map
from mcpmq.execution.device import CPU
from mcpmq.execution.hooks import observe_inputs
from mcpmq.rounding.stats import MODALITIES, Drift, InputStats

BUFFER_TOKENS = 2048  # per update of the Hessian: writing a large matrix is slow
TILE_COLUMNS = 1024  # only tiles on and above the diagonal are multiplied
HELD_OUT_TOKENS = 2048  # kept for every distinct input


@dataclass(frozen=True, slots=True)
class HoldOut:
    """The use of held-out samples: some of their inputs are kept, to compare roundings.

    is_held_out: returns whether the current sample is held out. in_gram: whether its inputs are added to the
    statistics too.
    """

    is_held_out: Callable[[], bool]
    in_gram: bool


NO_HOLD_OUT = HoldOut(lambda: False, in_gram=True)


@dataclass(frozen=True, slots=True)
class TokenModalities:
    """The modality of every input row of the current sample, and the weight of each modality, in memory of the CPU.

    `modality_ids(count)` returns the modalities of `count` input rows, uint8 [count], as indices into MODALITIES.
    `weights` is float32 [4].
    """

    modality_ids: Callable[[int], Tensor]
    weights: Tensor

    def token_weights(self, modality_ids: Tensor) -> Tensor:
        """Return the weights of tokens of these modalities, float32 [tokens]."""
        return self.weights[modality_ids.long()]


def tile_starts(columns: int) -> range:
    """Return the first columns of the tiles of a Hessian."""
    return range(0, columns, TILE_COLUMNS)


def count_modalities(modality_ids: Tensor) -> dict[str, int]:
    """Count the tokens of each modality; `modality_ids` is uint8 [tokens]."""
    counts = torch.bincount(modality_ids, minlength=len(MODALITIES)).tolist()
    return dict(zip(MODALITIES, counts, strict=True))


@dataclass(slots=True)
class KeptInputs:
    """Held-out inputs times the square roots of their weights, with the difference from the original model if any.

    inputs, difference: float32 [HELD_OUT_TOKENS, columns], written in place, so that no copy of them is needed. count:
    of the rows with values.
    """

    inputs: Tensor
    difference: Tensor
    count: int = 0

    @classmethod
    def create(cls, columns: int, differences: int, device: torch.device) -> Self:
        """Return memory for the inputs; the system provides that of rows when they are written."""
        inputs, difference = (torch.empty(HELD_OUT_TOKENS, size, device=device) for size in (columns, differences))
        return cls(inputs, difference)

    @property
    def remaining(self) -> int:
        """Number of rows without values."""
        return len(self.inputs) - self.count

    def add(self, rows: Tensor) -> None:
        """Append rows of inputs and differences, float32 [tokens, columns of both]."""
        end, columns = self.count + len(rows), self.inputs.shape[1]
        self.inputs[self.count : end] = rows[:, :columns]
        self.difference[self.count : end] = rows[:, columns:]
        self.count = end


@dataclass(slots=True)
class HessianObserver:
    """Accumulate X^T X, the Hessian of GPTQ (arXiv 2210.17323), and the magnitudes and range of every input column.

    With drift it also accumulates the products of the inputs with the difference from the original model. `tiles` are
    the first columns of the tiles that are multiplied here; before `result`, other processes may set the other tiles.
    """

    modalities: TokenModalities
    parallel_map: ParallelMap
    hold_out: HoldOut
    gram: Tensor  # empty but for the tiles on and above the diagonal
    tiles: Sequence[int]
    abs_sum: Tensor
    minimum: Tensor
    maximum: Tensor
    buffer: (
        Tensor  # float32 [BUFFER_TOKENS, columns], inputs that the Hessian does not have, the difference beside them
    )
    drift: Drift | None = None
    buffered: int = 0  # rows of the buffer
    token_counts: Counter[str] = field(default_factory=Counter)
    total_weight: float = 0.0
    held_out: KeptInputs | None = None

    @classmethod
    def create(
        cls,
        modalities: TokenModalities,
        parallel_map: ParallelMap,
        hold_out: HoldOut,
        device: torch.device,
        columns: int,
        drift: Drift | None = None,
        tiles: Sequence[int] | None = None,
    ) -> Self:
        """Create an observer of inputs with this number of columns, and of drift, whose products need no values.

        `tiles` is None for all. The memory of other tiles is never written, so the system does not provide it.
        """
        gram = torch.empty(columns, columns, device=device)
        buffer = torch.empty(BUFFER_TOKENS, columns + (drift.products.shape[1] if drift else 0), device=device)
        abs_sum, minimum, maximum = torch.zeros(3, columns, device=device)
        tiles = tile_starts(columns) if tiles is None else tiles
        found = cls(modalities, parallel_map, hold_out, gram, tiles, abs_sum, minimum, maximum, buffer, drift)
        for tile in tiles:
            for products in found.products(tile):
                products.zero_()
        return found

    def update(self, rows: Tensor, difference: Tensor | None = None) -> None:
        """Add inputs, float32 [tokens, columns]; the Hessian is updated when the buffer is full.

        `difference`, float32 [tokens, columns or rows], is that of `Drift`.
        """
        modality_ids = self.modalities.modality_ids(len(rows))
        weights = self.modalities.token_weights(modality_ids)
        used = weights.nonzero()[:, 0]
        joined = rows if difference is None else torch.cat([rows, difference], 1)
        if self.hold_out.is_held_out():
            used = self._keep_held_out(joined, weights, used)
            if not self.hold_out.in_gram:
                return
        self.token_counts.update(count_modalities(modality_ids))
        self.total_weight += float(weights.double().sum())
        self._add(joined, weights, used)
        is_used = weights > 0
        rows, weights = _take_rows(rows, is_used.nonzero()[:, 0]), weights[is_used].to(rows.device, non_blocking=True)
        self.abs_sum += weights @ rows.abs()
        self.minimum = torch.cat([self.minimum[None], rows]).amin(0)
        self.maximum = torch.cat([self.maximum[None], rows]).amax(0)

    def _add(self, rows: Tensor, weights: Tensor, used: Tensor) -> None:
        """Add the inputs of these tokens to the buffer, and to the Hessian when it is full."""
        while len(used):
            now, used = used[: len(self.buffer) - self.buffered], used[len(self.buffer) - self.buffered :]
            free = self.buffer[self.buffered : self.buffered + len(now)]
            roots = weights[now].sqrt()[:, None].to(rows.device, non_blocking=True)
            torch.mul(_take_rows(rows, now), roots, out=free)
            self.buffered += len(now)
            if self.buffered == len(self.buffer):
                self._flush()

    def _keep_held_out(self, rows: Tensor, weights: Tensor, used: Tensor) -> Tensor:
        """Keep the inputs of a held-out sample up to the limit; return the tokens that the Hessian may have.

        If already the first sample is too large, some of its tokens are kept and the Hessian has no others, because
        tokens of one sample resemble each other.
        """
        columns = len(self.gram)
        kept = self.held_out or KeptInputs.create(columns, rows.shape[1] - columns, self.gram.device)
        if kept.count == 0 and len(used) > kept.remaining:
            used = used[torch.arange(kept.remaining) * len(used) // kept.remaining]
        if len(used) <= kept.remaining:
            kept.add(_take_rows(rows, used) * weights[used].sqrt()[:, None].to(rows.device))
        self.held_out = kept
        return used

    def _flush(self) -> None:
        if not self.buffered:
            return
        rows, self.buffered = self.buffer[: self.buffered], 0
        with bfloat16_matmul(self.gram.device):
            self.parallel_map(partial(self._add_tile, rows), self.tiles)

    def _add_tile(self, rows: Tensor, tile: int) -> None:
        columns = len(self.gram)
        inputs = rows[:, tile : min(tile + TILE_COLUMNS, columns)].T
        for products, others in zip(self.products(tile), (rows[:, tile:columns], rows[:, columns:]), strict=False):
            products.addmm_(inputs, others)

    def products(self, tile: int) -> tuple[Tensor, ...]:
        """Return the rows of a tile, to write to: of the Hessian from the diagonal on, and of products with a drift.

        Those that are multiplied here are complete after `finish`.
        """
        rows = slice(tile, tile + TILE_COLUMNS)
        return (self.gram[rows, tile:], self.drift.products[rows]) if self.drift else (self.gram[rows, tile:],)

    def finish(self) -> None:
        """Multiply the inputs in the buffer, and free it."""
        self._flush()
        self.buffer = self.buffer[:0].clone()

    def result(self) -> InputStats:
        """Return the statistics; the Hessian is not copied."""
        self.finish()
        for begin in tile_starts(len(self.gram)):  # mirrored in place: a second matrix would not fit
            end = begin + TILE_COLUMNS
            corner = self.gram[begin:end, begin:end].triu()
            self.gram[begin:end, begin:end] = corner + corner.triu(1).T
            self.gram[end:, begin:end] = self.gram[begin:end, end:].T
        counts = {name: self.token_counts[name] for name in MODALITIES}
        held_out, drift = None, self.drift
        if (kept := self.held_out) and kept.count:
            held_out = kept.inputs[: kept.count]
            drift = drift and replace(drift, held_out=kept.difference[: kept.count])
        return InputStats(
            *(self.gram, self.abs_sum, self.minimum, self.maximum, counts, self.total_weight),
            *(held_out, self.hold_out.in_gram),
            drift=drift,
        )


def _take_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Return rows with ascending indices, int64 [rows] in memory of the CPU; consecutive rows are not copied."""
    count = len(indices)
    if count and int(indices[-1]) - int(indices[0]) == count - 1:
        return rows[int(indices[0]) : int(indices[-1]) + 1]
    return rows[indices.to(rows.device, non_blocking=True)]


def collect_stats(
    block: nn.Module,
    parameters: Mapping[str, str | None],
    replay: Callable[[], None],
    modalities: TokenModalities,
    parallel_map: ParallelMap = serial_map,
    hold_out: HoldOut = NO_HOLD_OUT,
    stop_at_last: bool = False,
    device: torch.device = CPU,
) -> dict[str, tuple[InputStats, ...]]:
    """Collect input statistics of a block's matrices over all samples.

    `parameters` and the result are as in `capture_inputs`, `stop_at_last` as in `observe_inputs`; `parallel_map` runs
    over the tiles of the Hessian, which is on `device`, as the inputs.
    """
    new_observer = partial(HessianObserver.create, modalities, parallel_map, hold_out, device)
    return observe_inputs(block, parameters, replay, new_observer, stop_at_last)
