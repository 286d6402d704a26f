"""Report the progress of long loops; drawn by `ui`, silent by default."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

Item = TypeVar("Item")


Notify: TypeAlias = Callable[[str], None]  # called with a notice for the user


class Progress(Protocol):
    """Called with the items of a loop and a label; yields the items and shows how many are done."""

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a command; the loops in it are shown with its number, and the number of all steps is known."""

    label: str


def begin_stages(progress: Progress, labels: Sequence[str]) -> Callable[[], None]:
    """Return a function that begins the next stage. Stages of a function that another one calls are not counted."""
    stages = iter(progress([Stage(label) for label in labels], "stages"))

    def begin() -> None:
        next(stages, None)

    return begin


def silent(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yield the items and show nothing."""
    yield from items


def ignore_notice(text: str) -> None:
    """Show no notice."""
