"""Squared inputs of a matrix, summed by column."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from mcpmq.calibrate.observers import TokenModalities, count_modalities
from mcpmq.families.family import TensorSpec
from mcpmq.rounding.stats import MODALITIES


@dataclass(frozen=True, slots=True)
class SquareSums:
    """Squared inputs of one matrix summed by column, float32 [columns], and the number of tokens of each modality."""

    sums: Tensor
    token_counts: Mapping[str, int]

    @classmethod
    def zero(cls, spec: TensorSpec) -> Self:
        """Return the sums of no inputs."""
        return cls(torch.zeros(spec.shape[0 if spec.transposed else 1]), {})


@dataclass(slots=True)
class SquareSumObserver:
    """Sums the squared inputs of one matrix, in float64 so that the order of samples does not matter."""

    modalities: TokenModalities
    sums: Tensor
    token_counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def create(cls, modalities: TokenModalities, device: torch.device, columns: int) -> Self:
        return cls(modalities, torch.zeros(columns, dtype=torch.float64, device=device))

    def update(self, rows: Tensor) -> None:
        """Add inputs, float32 [tokens, columns]."""
        self.token_counts.update(count_modalities(self.modalities.modality_ids(len(rows))))
        self.sums += rows.square().sum(0, dtype=torch.float64)

    def result(self) -> SquareSums:
        """Return the sums in float32."""
        return SquareSums(self.sums.float().cpu(), {name: self.token_counts[name] for name in MODALITIES})
