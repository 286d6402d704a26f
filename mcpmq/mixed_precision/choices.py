"""Choices of a search: the scheme of every weight, layers that are removed, and settings of structured compression."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a weight."""

    scheme: str
    nbytes: int
    loss: float  # not negative, and additive over weights


Options = Mapping[str, Sequence[Option]]  # by weight


@dataclass(frozen=True, slots=True)
class Removal:
    """The weights of a layer, which can be removed together."""

    layer: str
    weights: tuple[str, ...]
    loss: float  # of the model without the layer


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a part of the model, such as the limit of its images; one of several is chosen.

    `options` are those of the weights whose size depends on the setting; all settings of a part have the same weights.
    """

    name: str
    loss: float = 0.0
    options: Options = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limit:
    """The maximum total size of the weights of some components.

    `charges` are bytes beside these weights, negative if they are saved: of a removed layer or a setting by its name,
    and of two of them together, in addition to those of each.
    """

    components: tuple[str, ...]
    nbytes: int
    charges: Mapping[tuple[str, ...], float] = field(default_factory=dict)

    def covers(self, name: str) -> bool:
        return name.partition(".")[0] in self.components


@dataclass(frozen=True, slots=True)
class Choices:
    """Structured compression that can be chosen: layers, of which at most `most` are removed, and settings by part."""

    layers: tuple[Removal, ...] = ()
    most: int = 0
    parts: tuple[tuple[Setting, ...], ...] = ()

    @property
    def settings(self) -> list[Setting]:
        """The settings of all parts."""
        return [setting for part in self.parts for setting in part]


NO_CHOICES = Choices()


@dataclass(frozen=True, slots=True)
class Solution:
    """The option of every weight that is not removed, the removed layers, and the setting of every part."""

    options: dict[str, Option]
    removed: tuple[Removal, ...] = ()
    settings: tuple[Setting, ...] = ()

    def nbytes(self, limit: Limit) -> float:
        """Return the total size that a limit applies to, with its charges."""
        chosen = {one.layer for one in self.removed} | {one.name for one in self.settings}
        charges = sum(nbytes for names, nbytes in limit.charges.items() if chosen.issuperset(names))
        return sum(one.nbytes for name, one in self.options.items() if limit.covers(name)) + charges

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return sum(option.loss for option in self.options.values()) + self.structure_loss

    @property
    def dependent_options(self) -> dict[str, Sequence[Option]]:
        """The options of the weights whose size depends on the chosen settings."""
        return {name: several for one in self.settings for name, several in one.options.items()}

    @property
    def structure_loss(self) -> float:
        """The sum of the losses of removed layers and settings."""
        return sum(one.loss for one in self.removed) + sum(one.loss for one in self.settings)


def min_nbytes(options: Options, limit: Limit) -> int:
    """Return the total size of the smallest options of the weights that a limit covers."""
    return sum(min(option.nbytes for option in several) for name, several in options.items() if limit.covers(name))
