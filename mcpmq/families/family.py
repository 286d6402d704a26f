"""The shape of a family: everything that is true of one kind of model, as data and three functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Role = Literal["matrix", "table", "other"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a checkpoint of the family must hold.

    `name` is the common name, the same in every family; recipes match it. A `matrix` multiplies
    activations and a `table` is looked up by row: these may be quantized; `other` keeps its dtype.
    """

    name: str
    hub_name: str
    shape: tuple[int, ...]
    role: Role = "other"
    transposed: bool = False  # stored [in, out]; everywhere else mcpmq has it as [out, in]
    may_grow: Literal["rows", "columns"] | None = None  # a hidden width: zeros added there change nothing computed

    @property
    def component(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Fold:
    """Two neighbours between which scales move without changing what a model computes.

    What `source` puts out (a norm, or the rows of a matrix; its bias too) is divided by one scale a channel, and the
    columns of `into` that read the channel are multiplied by it. Names are common names inside a block of `component`.
    `part` (index, count) says which of so many equal shares of its rows the source puts the channels out by. If `into`
    reads heads that share channels, as queries share values, so do their columns.
    """

    component: str
    source: str
    into: tuple[str, ...]
    part: tuple[int, int] = (0, 1)

    def within(self, block: str) -> "Fold":
        """The same with whole names, in one block: `language.layers.0`."""
        return replace(self, source=f"{block}.{self.source}", into=tuple(f"{block}.{name}" for name in self.into))


@dataclass(frozen=True, slots=True)
class LanguageShape:
    """Sizes of the language model."""

    architecture: str  # as llama.cpp calls it
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocabulary: int
    context: int
    rope_theta: float
    norm_epsilon: float
    attention_bias: bool


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of the vision tower and of the connector behind it."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    patch: int  # side of a patch in pixels
    grid: int  # side of the table of position embeddings, in patches
    slice_side: int  # pixels; a slice has about this side squared
    queries: int  # image tokens a slice becomes
    norm_epsilon: float


@dataclass(frozen=True, slots=True)
class Architecture:
    """A config.json, read and checked."""

    language: LanguageShape
    vision: VisionShape


@dataclass(frozen=True, slots=True)
class Inputs:
    """One sample as the model takes it: the same tokens and the same pixels for every engine.

    tokens: int64 [length], prompt and answer. answer_start: index of the first token of the answer; the
    answer ends with the end-of-turn token. slices: uint8 RGB [height, width, 3] each, sides multiples of
    the patch. image_bounds: int64 [slices, 2], the span of tokens that each slice's features replace. image: uint8 RGB
    [height, width, 3], the image before it was cut, only where an engine that can cut images itself is to do so.
    """

    id: str
    tokens: NDArray[np.int64]
    answer_start: int
    slices: tuple[NDArray[np.uint8], ...]
    image_bounds: NDArray[np.int64]
    image: NDArray[np.uint8] | None = None

    @property
    def kind(self) -> Literal["image", "text"]:
        return "image" if self.slices else "text"


class Processor(Protocol):
    """What turns an image, a prompt and an answer into inputs, read from the checkpoint's own files."""

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs: ...

    def arguments(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """What the native module's forward takes, by name, the batch of one sample."""


@dataclass(frozen=True, slots=True)
class Family:
    """Everything mcpmq knows about one kind of model."""

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]  # from the raw config.json
    architecture: Callable[[Mapping[str, Any]], Architecture]
    tensors: Callable[[Architecture], tuple[TensorSpec, ...]]  # in the order of the forward pass
    processor: Callable[[Path], Processor]
    native: str  # "module:function" that builds the torch model from the raw config on the meta device
    fed_by: tuple[tuple[str, str], ...] = ()  # hub names: a matrix that no linear holds, and what feeds it its output
    folds: tuple[Fold, ...] = ()  # between which neighbours of a block scales may move
