"""How the integers are chosen: one function a file, all of one type."""

from collections.abc import Callable

from torch import Tensor

from mcpmq.observe import LayerStats
from mcpmq.qtensor import QTensor
from mcpmq.recipe import GgmlScheme, IntegerScheme
from mcpmq.rounding import gptq, rtn

Rounder = Callable[[Tensor, IntegerScheme | GgmlScheme, LayerStats | None], QTensor]

ROUNDERS: dict[str, Rounder] = {"rtn": rtn.quantize, "gptq": gptq.quantize}
