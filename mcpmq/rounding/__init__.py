"""How the integers are chosen: one function a file, all of one type."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mcpmq.qtensor import QTensor
from mcpmq.rounding import gptq, rtn, rtn_imatrix
from mcpmq.rounding.stats import LayerStats
from mcpmq.scheme import GgmlScheme, IntegerScheme

Rounder = Callable[[Tensor, IntegerScheme | GgmlScheme, LayerStats | None], QTensor]

RounderName = Literal["rtn", "importance", "gptq"]
ROUNDERS: dict[RounderName, Rounder] = {"rtn": rtn.quantize, "importance": rtn_imatrix.quantize, "gptq": gptq.quantize}
