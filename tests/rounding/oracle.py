"""GPTQ as its paper writes it: the inverse of the damped Gram matrix, in float64, one column at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import GgmlScheme, IntegerScheme, parse_scheme

SCHEMES = (
    "int4-g16", "int4-g32", "int4-g128", "int4-row", "int4-g32-asym", "int8-g64", "int8-row", "int8-row-asym",
    "q8_0", "q4_0", "q4_1", "q5_0", "iq4_nl", "q4_k", "q5_k", "q6_k",
)  # fmt: skip

Values = Callable[[int, Tensor], Tensor]
"""All values [rows, levels] that a column may take, given the column and its span's current weights [rows, columns]."""


def brute_force(weight: Tensor, gram: Tensor, order: list[int], span: int, values: Values) -> Tensor:
    """The rounded weight, float64 [rows, columns]."""
    matrix = gram.double()[order][:, order]
    dead = matrix.diagonal() == 0
    mean = matrix.diagonal()[~dead].mean()
    matrix += torch.diag(torch.where(dead, mean, 0) + 0.01 * mean)
    upper = torch.linalg.cholesky(torch.linalg.inv(matrix), upper=True)
    current, rounded = weight.double()[:, order], torch.empty(weight.shape, dtype=torch.float64)
    for index, column in enumerate(order):
        if index % span == 0:
            reached = current[:, index : index + span].clone()
        choices = values(column, reached)
        best = (choices - current[:, index, None]).abs().argmin(1, keepdim=True)
        rounded[:, column] = choices.gather(1, best)[:, 0]
        error = (current[:, index] - rounded[:, column]) / upper[index, index]
        current -= error[:, None] * upper[index]
    return rounded


def importance_of(gram: Tensor) -> Tensor:
    """Of every column in its own order, float32: the mean of its inputs' squares, and of their part that later columns
    cannot stand in for; the geometric mean of the two."""
    damped = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(len(gram))
    alone = 1 / torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).diagonal().square()
    return (alone * gram.diagonal()).sqrt().float()


def scheme_of(text: str) -> IntegerScheme | GgmlScheme:
    """A scheme that rounds."""
    scheme = parse_scheme(text)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    return scheme


def sample_layer(rows: int, columns: int, seed: int = 0, tokens: int = 600) -> tuple[Tensor, Tensor]:
    """A weight, and inputs [tokens, columns] that are correlated and of very different sizes, as real ones are."""
    make = torch.Generator().manual_seed(seed)
    common = torch.randn(tokens, max(2, columns // 8), generator=make)
    mixed = common @ torch.randn(common.shape[1], columns, generator=make)
    inputs = mixed + 0.5 * torch.randn(tokens, columns, generator=make)
    size = torch.randn(columns, generator=make).exp()
    return 0.05 * torch.randn(rows, columns, generator=make) / size.sqrt(), inputs * size


def stats_of(inputs: Tensor) -> LayerStats:
    """What a layer saw."""
    tokens, zero = {"vision": 0, "text": len(inputs), "answer": 0}, torch.zeros(1)
    lowest, highest = inputs.amin(0).minimum(zero), inputs.amax(0).maximum(zero)
    return LayerStats(inputs.T @ inputs, inputs.abs().sum(0), lowest, highest, tokens, float(len(inputs)))
