"""The shape every runner has."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.family import Inputs

Result = TypeVar("Result")
Logits: TypeAlias = NDArray[np.float32]  # [vocabulary]; may be the engine's own memory, good until the next ones come
Judge: TypeAlias = Callable[[Inputs, Iterable[Logits]], Result]


class Runner(Protocol):
    """A model in its real engine, loaded and ready."""

    notes: tuple[str, ...]  # what a reader of the figures must know, e.g. which samples saw other pixels

    def run(self, samples: Sequence[Inputs], judge: Judge[Result]) -> Iterator[Result]:
        """For every sample in order, what `judge` makes of it.

        The judge gets the logits that predict each token of `tokens[answer_start:]`, in order and one by one, so that
        no more of them need be in memory than the engine itself holds.
        """


class OpenRunner(Protocol):
    """Every module of this room has this function, `open_runner`."""

    def __call__(self, path: Path, threads: int) -> Runner: ...
