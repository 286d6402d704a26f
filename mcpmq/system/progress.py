"""Report the progress of long loops; drawn by `ui`, silent by default."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias, TypeVar

Item = TypeVar("Item")


Notify: TypeAlias = Callable[[str], None]  # called with a notice for the user


class Progress(Protocol):
    """Called with the items of a loop and a label; yields the items and shows how many are done."""

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]: ...


def silent(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yield the items and show nothing."""
    yield from items


def ignore_notice(text: str) -> None:
    """Show no notice."""
