"""What llama.cpp's multimodal part must know of one kind of vision tower."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter

from mcpmq.formats.gguf.names import Names
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.formats.model_view import Declared


def no_slots(quantized: Declared) -> list[Slot]:
    """llama.cpp reads all that it asks for."""
    return []


def as_it_is(quantized: Declared, slot: Slot) -> Slot:
    """llama.cpp takes the values that we have."""
    return slot


@dataclass(frozen=True, slots=True)
class Tower:
    """Names, keys and tokens of a kind; `add_metadata` writes the keys that no other kind has, and refuses what
    llama.cpp would take for something else."""

    projector: str  # llama.cpp's name of the kind
    names: Names
    tokens: tuple[str, ...]  # what llama.cpp looks up in the vocabulary
    channels: str  # keys of preprocessor_config.json for the mean and the spread of colours
    add_metadata: Callable[[GGUFWriter, Declared, Mapping[str, Any]], None]
    unread_slots: Callable[[Declared], list[Slot]] = no_slots  # what llama.cpp asks for and does not read
    computed: Callable[[Declared, Slot], Slot] = as_it_is  # where llama.cpp wants other values than ours
    preprocessor: tuple[str, ...] = ("preprocessor_config.json",)  # the first of these files says how images are cut
