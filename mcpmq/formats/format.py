"""The shape every format module has."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mcpmq.plan import Step
from mcpmq.progress import Progress

if TYPE_CHECKING:  # `plan --format` asks `refuses` without torch
    from mcpmq.quantized import Quantized


class Format(Protocol):
    """A byte layout. A module with these two functions is one."""

    def refuses(self, step: Step) -> str | None:
        """Why the format cannot hold this weight on its scheme, naming what it can; None if it can."""

    def write(self, quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
        """Write the files into the empty folder `out`; component -> paths of its files, relative to `out`."""
