"""Limits of a budget as limits on weights alone, with the bytes of structured compression beside them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression.layer_config import shape_without_layers
from mcpmq.compression.layers import kept_layers
from mcpmq.estimate.forecast import FormatEstimate
from mcpmq.estimate.resources import language_cache_nbytes
from mcpmq.formats.format import RuntimeMemory
from mcpmq.mixed_precision.budget import Budget
from mcpmq.mixed_precision.choices import Choices, Limit, Options, min_nbytes
from mcpmq.mixed_precision.structure import ALL_TOKENS

VISION_COMPONENTS = ("vision", "projector")  # all others are in the language model
Charges = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Resource:
    """A limited resource of some components: its limit, and its use by an artifact."""

    components: tuple[str, ...]
    limit_nbytes: int
    used: Callable[[FormatEstimate], int]
    ratio: float = 1.0  # bytes for each byte of weights
    has_cache: bool = False  # is the memory of the KV cache

    def limit(self, options: Options, smallest: FormatEstimate, reserve: int) -> Limit:
        """Return the limit on weights; all other bytes are known from the smallest artifact."""
        free = (self.limit_nbytes - reserve - self.used(smallest)) / self.ratio
        return Limit(self.components, int(min_nbytes(options, Limit(self.components, 0)) + free))

    def other_nbytes(self, options: Options, smallest: FormatEstimate) -> float:
        """Return the bytes that are not those of weights."""
        return self.used(smallest) / self.ratio - min_nbytes(options, Limit(self.components, 0))


def resources(budget: Budget, options: Options, runtime: RuntimeMemory) -> Iterator[Resource]:
    """Yield the limited resources of an artifact with these weights."""
    components = dict.fromkeys(name.partition(".")[0] for name in options)
    language = tuple(name for name in components if name not in VISION_COMPONENTS)
    ratio, memory = runtime.resident_ratio, budget.memory_nbytes
    if budget.file_nbytes is not None:
        yield Resource(VISION_COMPONENTS + language, budget.file_nbytes, lambda one: one.nbytes)
    if memory is not None and budget.sequential:
        yield Resource(VISION_COMPONENTS, memory, lambda one: one.device.vision_nbytes, ratio)
        yield Resource(language, memory, lambda one: one.device.language_nbytes, ratio, has_cache=True)
    elif memory is not None:
        parts = VISION_COMPONENTS + language
        yield Resource(parts, memory, lambda one: one.device.concurrent_nbytes, ratio, has_cache=True)


@dataclass(frozen=True, slots=True)
class StructureBytes:
    """The bytes of structured compression: smallest artifacts by vocabulary, and changes of the KV cache."""

    smallest: Mapping[str, FormatEstimate] = field(default_factory=dict)  # by the name of the setting
    cache: Charges = field(default_factory=dict)

    def charges(self, resource: Resource, options: Options, choices: Choices) -> dict[tuple[str, ...], float]:
        """Return the charges of a resource, in bytes of weights."""
        others = {
            one.name: resource.other_nbytes({**options, **one.options}, self.smallest[one.name])
            for one in choices.settings
            if one.options
        }
        charges: dict[tuple[str, ...], float] = {}
        for name, nbytes in others.items():
            charges[name,] = nbytes - others[ALL_TOKENS]
        known = {*(one.layer for one in choices.layers), *(one.name for one in choices.settings)}
        if resource.has_cache:
            charges |= {names: nbytes / resource.ratio for names, nbytes in self.cache.items() if known >= {*names}}
        return charges


def cache_charges(
    checkpoint: Checkpoint, runtime: RuntimeMemory, context: int, layers: Sequence[str], saved: Mapping[str, int]
) -> dict[tuple[str, ...], float]:
    """Return the change of the KV cache without each layer, with fewer tokens of images, and with both together."""

    def nbytes(removed: Sequence[str], saved_tokens: int) -> int:
        kept = kept_layers(checkpoint.architecture, removed)
        shape = shape_without_layers(checkpoint.architecture, kept).language
        return language_cache_nbytes(shape, context - saved_tokens, runtime)

    all_nbytes = nbytes((), 0)
    charges: dict[tuple[str, ...], float] = {(name,): nbytes((), one) - all_nbytes for name, one in saved.items()}
    for layer in (one for one in layers if one.startswith("language.")):
        charges[layer,] = nbytes([layer], 0) - all_nbytes
        for name, one in saved.items():
            charges[layer, name] = nbytes([layer], one) - all_nbytes - charges[layer,] - charges[name,]
    return charges
