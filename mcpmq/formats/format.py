"""The shape every format module has."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mcpmq.plan import Step
from mcpmq.progress import Progress

if TYPE_CHECKING:  # `plan --format` asks `refuses` without torch
    from mcpmq.quantized import Quantized


class Format(Protocol):
    """A byte layout. A module with these functions is one; one that never widens a weight has no `stored_shapes`."""

    def refuses(self, step: Step) -> str | None:
        """Why the format cannot hold this weight on its scheme, naming what it can; None if it can."""

    def write(self, quantized: "Quantized", out: Path, progress: Progress) -> dict[str, list[str]]:
        """Write the files into the empty folder `out`; component -> paths of its files, relative to `out`."""

    def stored_shapes(self, quantized: "Quantized") -> dict[str, tuple[int, ...]]:
        """[out, in] of every weight that zeros fill up to whole blocks in the files, by common name."""
