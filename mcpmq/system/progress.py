"""What long work tells the person waiting for it; drawn by `show`, silent by default."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Called with the items of a loop; yields them back and shows how far it is."""

    def __call__(self, items: Sequence[Item], what: str) -> Iterable[Item]: ...


def silent(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Show nothing."""
    yield from items
