"""How the integers are chosen: one function a file, all of one type."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from mcpmq.observe import LayerStats
from mcpmq.qtensor import QTensor
from mcpmq.recipe import GgmlScheme, IntegerScheme
from mcpmq.rounding import gptq, importance, rtn

Rounder = Callable[[Tensor, IntegerScheme | GgmlScheme, LayerStats | None], QTensor]

RounderName = Literal["rtn", "importance", "gptq"]
ROUNDERS: dict[RounderName, Rounder] = {"rtn": rtn.quantize, "importance": importance.quantize, "gptq": gptq.quantize}
