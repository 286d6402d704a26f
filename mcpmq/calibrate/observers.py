"""What every linear of a block sees while calibration samples pass through it: sums of x xT, by modality.

Sums run over the tokens in the order of the samples, in tiles: the same samples give the same bytes on any threads.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from mcpmq.execution.chunked_matmul import Each, bfloat16_products, one_by_one
from mcpmq.execution.hooks import watch
from mcpmq.rounding.stats import MODALITIES, LayerStats

WAITING_TOKENS = 2048  # rows gathered before they enter a sum: a large matrix is then written a few times only
TILE_COLUMNS = 1024  # only tiles on and above the diagonal are multiplied


@dataclass(frozen=True, slots=True)
class Labels:
    """Which modality every token is of, for the sample that is passing, and what each modality weighs.

    `of(count)` gives the uint8 [count] modalities (as in MODALITIES) of a linear's input of so many rows; `weights` is
    float32 [3].
    """

    of: Callable[[int], Tensor]
    weights: Tensor


def count(kinds: Tensor) -> dict[str, int]:
    """How many tokens of each modality there are among these, uint8 [tokens]."""
    return dict(zip(MODALITIES, torch.bincount(kinds, minlength=len(MODALITIES)).tolist(), strict=True))


@dataclass(slots=True)
class _Sum:
    """One Gram matrix and the magnitudes of its columns, as they grow."""

    labels: Labels
    each: Each
    gram: Tensor
    absolute: Tensor
    lowest: Tensor
    highest: Tensor
    tokens: Counter[str] = field(default_factory=Counter)
    weight: float = 0.0
    waiting: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, labels: Labels, each: Each, columns: int) -> Self:
        device = labels.weights.device
        absolute, lowest, highest = torch.zeros(3, columns, device=device)
        return cls(labels, each, torch.zeros(columns, columns, device=device), absolute, lowest, highest)

    def add(self, rows: Tensor) -> None:
        """Count some inputs, float32 [tokens, columns], and let them wait."""
        kinds = self.labels.of(len(rows))
        self.tokens.update(count(kinds))
        weights = self.labels.weights[kinds.long()]
        self.weight += float(weights.double().sum())
        rows, weights = rows[weights > 0], weights[weights > 0]
        self.absolute += weights @ rows.abs()
        self.lowest = torch.cat([self.lowest[None], rows]).amin(0)
        self.highest = torch.cat([self.highest[None], rows]).amax(0)
        self.waiting.append(rows * weights.sqrt()[:, None])
        if sum(map(len, self.waiting)) >= WAITING_TOKENS:
            self.flush()

    def flush(self) -> None:
        rows = torch.cat(self.waiting or [self.gram[:0]])
        self.waiting.clear()
        with bfloat16_products():
            self.each(partial(self._enter, rows), range(0, len(self.gram), TILE_COLUMNS))

    def _enter(self, rows: Tensor, begin: int) -> None:
        end = begin + TILE_COLUMNS
        self.gram[begin:end, begin:].addmm_(rows[:, begin:end].T, rows[:, begin:])

    def stats(self) -> LayerStats:
        """What was summed up; the matrix is handed over, not copied."""
        self.flush()
        for begin in range(0, len(self.gram), TILE_COLUMNS):  # mirrored in place: a second matrix would not fit
            end = begin + TILE_COLUMNS
            corner = self.gram[begin:end, begin:end].triu()
            self.gram[begin:end, begin:end] = corner + corner.triu(1).T
            self.gram[end:, begin:end] = self.gram[begin:end, end:].T
        tokens = {kind: self.tokens[kind] for kind in MODALITIES}
        return LayerStats(self.gram, self.absolute, self.lowest, self.highest, tokens, self.weight)


def observe(
    block: nn.Module,
    parameters: Mapping[str, str | None],
    replay: Callable[[], None],
    labels: Labels,
    each: Each = one_by_one,
) -> dict[str, tuple[LayerStats, ...]]:
    """The statistics of what the matrices of a block see of all samples; arguments and result are those of
    `watching`.

    `each` may share the tiles of the sums out to threads.
    """
    return watch(block, parameters, replay, partial(_Sum.empty, labels, each))
