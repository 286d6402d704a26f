"""Report the progress of long loops; drawn by `ui`, silent by default."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Called with the items of a loop and a label; yields the items and shows how many are done."""

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]: ...


def silent(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yield the items and show nothing."""
    yield from items
