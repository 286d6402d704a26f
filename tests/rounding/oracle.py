"""Reference GPTQ in float64, one column at a time, with the inverse Hessian as in the paper; and sample layers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import torch
from torch import Tensor

from mcpmq.qtensor import QTensor
from mcpmq.rounding.descent import order_hessian
from mcpmq.rounding.hessian import ShrunkHessian
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import GgmlScheme, GridScheme, IntegerScheme, parse_scheme

SCHEMES = (
    "int4-g16", "int4-g32", "int4-g128", "int4-row", "int4-g32-asym", "int8-g64", "int8-row", "int8-row-asym",
    "q8_0", "q4_0", "q4_1", "q5_0", "iq4_nl", "q4_k", "q5_k", "q6_k", "iq4_xs", "q3_k", "q2_k",
)  # fmt: skip
VECTOR_SCHEMES = ("iq3_s",)  # codes of several columns are chosen together

ColumnValues = Callable[[int, Tensor], Tensor]
"""The values [rows, codes] on the grid of a column, given the column and its group's compensated weight."""


def reference_gptq(weight: Tensor, gram: Tensor, order: list[int], group_columns: int, values: ColumnValues) -> Tensor:
    """Return the quantized weight, without descent and shrinkage: float64 [rows, columns]."""
    hessian = gram.double()[order][:, order]
    dead = hessian.diagonal() == 0
    mean = hessian.diagonal()[~dead].mean()
    hessian += torch.diag(torch.where(dead, mean, 0) + 0.01 * mean)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    current, quantized = weight.double()[:, order], torch.empty(weight.shape, dtype=torch.float64)
    for index, column in enumerate(order):
        if index % group_columns == 0:
            compensated = current[:, index : index + group_columns].clone()
        choices = values(column, compensated)
        best = (choices - current[:, index, None]).abs().argmin(1, keepdim=True)
        quantized[:, column] = choices.gather(1, best)[:, 0]
        error = (current[:, index] - quantized[:, column]) / upper[index, index]
        current -= error[:, None] * upper[index]
    return quantized


def expected_importance(gram: Tensor) -> Tensor:
    """Return the importance of every column in its own order, float32.

    It is the geometric mean of the mean square of the inputs and of the part that later columns cannot compensate.
    """
    damped = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(len(gram))
    pivots = 1 / torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).diagonal().square()
    importance: Tensor = (pivots * gram.diagonal()).sqrt().float()
    return importance


def grid_scheme(text: str) -> GridScheme:
    """Parse a scheme that all rounding methods support."""
    scheme = parse_scheme(text)
    assert isinstance(scheme, IntegerScheme | GgmlScheme)
    return scheme


def random_layer(rows: int, columns: int, seed: int = 0, tokens: int = 600) -> tuple[Tensor, Tensor]:
    """Return a weight and inputs [tokens, columns] that are correlated and of very different magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(tokens, max(2, columns // 8), generator=generator)
    mixed = common @ torch.randn(common.shape[1], columns, generator=generator)
    inputs = mixed + 0.5 * torch.randn(tokens, columns, generator=generator)
    magnitude = torch.randn(columns, generator=generator).exp()
    return 0.05 * torch.randn(rows, columns, generator=generator) / magnitude.sqrt(), inputs * magnitude


def input_stats(inputs: Tensor) -> InputStats:
    """Return the statistics of inputs [tokens, columns] that are all text."""
    tokens, zero = {"vision": 0, "text": len(inputs), "answer": 0, "audio": 0}, torch.zeros(1)
    minimum, maximum = inputs.amin(0).minimum(zero), inputs.amax(0).maximum(zero)
    return InputStats(inputs.T @ inputs, inputs.abs().sum(0), minimum, maximum, tokens, float(len(inputs)))


def shrunk_hessian(gram: Tensor, scheme: GridScheme, shrinkage: float) -> ShrunkHessian:
    """Return the shrunk Hessian for a descent on a scheme."""
    with ThreadPoolExecutor(1) as pool:
        return ShrunkHessian.create(order_hessian(gram, scheme, pool), shrinkage)


def tensor_parts(weight: QTensor) -> dict[str, Tensor]:
    """Return the tensors of a quantized weight by the names of their fields."""
    parts = {field.name: getattr(weight, field.name) for field in fields(weight)}
    return {name: part for name, part in parts.items() if isinstance(part, Tensor)}


def same_bytes(one: QTensor, other: QTensor) -> bool:
    """Return whether two quantized weights have the same tensors, bit for bit."""
    parts, others = tensor_parts(one), tensor_parts(other)
    return parts.keys() == others.keys() and all(
        part.dtype == others[name].dtype and torch.equal(part, others[name]) for name, part in parts.items()
    )
