"""Statistics of the inputs of one linear layer, split by modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

MODALITIES = ("vision", "text", "answer")
VISION, TEXT, ANSWER = range(3)


@dataclass(frozen=True, slots=True)
class LayerStats:
    """What one linear saw.

    gram: float32 [columns, columns], the weighted sum of x xT over its inputs x. absolute: float32 [columns], the
    weighted sum of |x|. lowest, highest: float32 [columns], the least and the greatest of those x that weigh anything,
    and of 0. tokens: how many of each modality there were, whatever their weight. weight: the sum of the weights.
    """

    gram: Tensor
    absolute: Tensor
    lowest: Tensor
    highest: Tensor
    tokens: Mapping[str, int]
    weight: float

    @property
    def largest(self) -> Tensor:
        """The largest |x|: float32 [columns]."""
        return self.highest.maximum(-self.lowest)

    def __add__(self, other: Self) -> "LayerStats":
        """What was seen here and there."""
        return LayerStats(
            self.gram + other.gram,
            self.absolute + other.absolute,
            self.lowest.minimum(other.lowest),
            self.highest.maximum(other.highest),
            {kind: self.tokens[kind] + other.tokens[kind] for kind in MODALITIES},
            self.weight + other.weight,
        )
