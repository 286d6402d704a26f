"""Statistics of the inputs of one linear layer, split by modality."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from mcpmq.errors import DatasetError

MODALITIES = ("vision", "text", "answer", "audio")
VISION, TEXT, ANSWER, AUDIO = range(4)
MIN_SQUARE = 2.0**-100  # of all inputs of a column: below it products of inputs are rounded to zero


@dataclass(frozen=True, slots=True)
class Drift:
    """The difference e between the original and the quantized model at the inputs x of a layer in the quantized model.

    of_outputs: whether e is that of the residual stream after the outputs were added, [rows]; else e is that of the
    inputs, [columns].
    products: float32 [columns, rows or columns], the sum of w x e^T with the weight w of a token; once it is solved,
    the matrix C for which the square of e - C^T x is least.
    held_out: float32 [tokens, rows or columns], e of the held-out inputs times the square roots of their weights.
    """

    of_outputs: bool
    products: Tensor
    held_out: Tensor | None = None


@dataclass(frozen=True, slots=True)
class InputStats:
    """Additive statistics of the inputs x of one linear layer, each weighted by the weight w of its token.

    gram: float32 [columns, columns], the sum of w x x^T: the Hessian of GPTQ.
    abs_sum: float32 [columns], the sum of w |x|.
    minimum, maximum: float32 [columns], the range of x over tokens with w > 0, extended to include 0.
    token_counts: the number of tokens of each modality, regardless of weight.
    total_weight: the sum of w.
    held_out_inputs: float32 [tokens, columns], inputs of held-out samples times the square roots of their weights.
    gram_has_held_out: whether the Hessian, counts and weight include them.
    shrinkage: of the entries of the Hessian off the diagonal; None to derive it from the number of tokens.
    drift: of the quantized model at this layer; None if the targets are the outputs of its original weights.
    overwrite: whether rounding may destroy the Hessian, which has no other use: a second one may not fit into memory.
    """

    gram: Tensor
    abs_sum: Tensor
    minimum: Tensor
    maximum: Tensor
    token_counts: Mapping[str, int]
    total_weight: float
    held_out_inputs: Tensor | None = None
    gram_has_held_out: bool = False
    shrinkage: float | None = None
    drift: Drift | None = None
    overwrite: bool = False

    @property
    def has_inputs(self) -> bool:
        """True if an input is large enough for a Hessian in float32; after a norm of zeros all inputs are zero."""
        return bool(self.gram.diagonal().max() > MIN_SQUARE)

    @property
    def abs_max(self) -> Tensor:
        """The largest |x| of every column, float32 [columns]."""
        return self.maximum.maximum(-self.minimum)

    def __add__(self, other: Self) -> "InputStats":
        """Merge the statistics of two sets of inputs."""
        return InputStats(
            self.gram + other.gram,
            self.abs_sum + other.abs_sum,
            self.minimum.minimum(other.minimum),
            self.maximum.maximum(other.maximum),
            {name: self.token_counts[name] + other.token_counts[name] for name in MODALITIES},
            self.total_weight + other.total_weight,
        )


def require_stats(stats: InputStats | None, columns: int, method: str) -> InputStats:
    """Return the statistics for a weight of `columns` columns.

    Raises:
        DatasetError: they are missing, or of a layer with other columns.
    """
    if stats is None or len(stats.gram) != columns:
        found = "none" if stats is None else f"{len(stats.gram):,} columns"
        raise DatasetError(
            f"`{method}` needs input statistics of {columns:,} columns, got {found}", "calibrate this checkpoint"
        )
    return stats
