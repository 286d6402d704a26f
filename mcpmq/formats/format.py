"""The shape every format module has."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mcpmq.formats.model_view import Declared
from mcpmq.plan import Step
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # `plan --format` asks `refuses` and `forecast` without torch
    from mcpmq.quantized_model import Quantized


@dataclass(frozen=True, slots=True)
class FileForecast:
    """One file that will be written, and its exact size."""

    path: str  # relative to the artifact
    component: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class WeightForecast:
    """How a file will hold one weight; `reason` says why it is not as the plan has it, and is empty where it is."""

    name: str
    stored_as: str  # in the words of the format: `Q4_0`, `MatMulNBits 4x32`
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a format's engine takes in memory."""

    cache_nbytes: int  # for one number of a key or a value
    resident: float  # for every byte of weights on disk
    pass_logits: int  # positions whose logits one pass over a prompt has room for


@dataclass(frozen=True, slots=True)
class LayoutForecast:
    """What a format will make of a plan."""

    files: tuple[FileForecast, ...]
    weights: tuple[WeightForecast, ...]
    runtime: Runtime

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


class Format(Protocol):
    """A byte layout. A module with these functions is one; one that never widens a weight has no `stored_shapes`."""

    def refuses(self, step: Step) -> str | None:
        """Why the format cannot hold this weight on its scheme, naming what it can; None if it can."""

    def write(self, quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
        """Write the files into the empty folder `out`; component -> paths of its files, relative to `out`."""

    def forecast(self, model: Declared) -> LayoutForecast:
        """Every file that `write` would write, to the byte; reads no weight and imports no torch."""

    def stored_shapes(self, quantized: "Quantized") -> dict[str, tuple[int, ...]]:
        """[out, in] of every weight that zeros fill up to whole blocks in the files, by common name."""
