"""How the integers are chosen: one function a file, all of one type."""

from collections.abc import Callable

from torch import Tensor

from mcpmq.qtensor import QTensor
from mcpmq.recipe import GgmlScheme, IntegerScheme
from mcpmq.rounding import rtn

Rounder = Callable[[Tensor, IntegerScheme | GgmlScheme], QTensor]

ROUNDERS: dict[str, Rounder] = {"rtn": rtn.quantize}
