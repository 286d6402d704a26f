"""The shape every runner has."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.family import Inputs


class Runner(Protocol):
    """A model in its real engine, loaded and ready."""

    notes: tuple[str, ...]  # what a reader of the figures must know, e.g. which samples saw other pixels

    def losses(self, samples: Sequence[Inputs]) -> Iterator[NDArray[np.float64]]:
        """For every sample in order, the natural-log loss of each token of `tokens[answer_start:]`."""


class OpenRunner(Protocol):
    """Every module of this room has this function, `open_runner`."""

    def __call__(self, path: Path, threads: int) -> Runner: ...
