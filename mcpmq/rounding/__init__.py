"""Rounding methods: one module for each, all with a `quantize` function of one type."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mcpmq.qtensor import QTensor
from mcpmq.rounding import gptq, rtn, rtn_imatrix
from mcpmq.rounding.stats import InputStats
from mcpmq.scheme import GridScheme

RoundingFunction = Callable[[Tensor, GridScheme, InputStats | None], QTensor]

RoundingMethod = Literal["rtn", "rtn-imatrix", "gptq"]
ROUNDING_FUNCTIONS: dict[RoundingMethod, RoundingFunction] = {
    "rtn": rtn.quantize,
    "rtn-imatrix": rtn_imatrix.quantize,
    "gptq": gptq.quantize,
}
