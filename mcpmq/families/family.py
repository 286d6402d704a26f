"""The shape of a family: everything that is true of one kind of model, as data and three functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.prompt_format import SINCE_2_6, Layout

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
    native_names: tuple[str, ...] = ()  # of the parameters in the native module that are this one; () for `hub_name`
    also: str = ""  # a second name for recipes: an embedding that is the head too is called `head` as well

    @property
    def component(self) -> str:
        return self.name.partition(".")[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """What the native module calls it; several names where one tensor serves several modules."""
        return self.native_names or (self.hub_name,)


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Layers that keep a state of fixed size instead of keys and values (Gated DeltaNet, arXiv 2412.06464)."""

    layers: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int  # tokens that the convolution before it sees

    @property
    def channels(self) -> int:
        """Of queries, keys and values together."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Queries, and keys with values, made of few numbers each (multi-head latent attention, arXiv 2405.04434)."""

    query_rank: int
    key_rank: int
    plain_width: int  # channels of a head's queries and keys that are not turned
    value_width: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Two neighbours between which scales move without changing what a model computes.

    What `source` puts out (a norm, or the rows of a matrix; its bias too) is divided by one scale a channel, and the
    columns of `into` that read the channel are multiplied by it. Names are common names inside a block of `component`.
    `part` (index, count) says which of so many equal shares of its rows the source puts the channels out by. If `into`
    reads heads that share channels, as queries share values, so do their columns. A `centred` norm scales by one more
    than its weight. `into` lists all that reads the channels; a block that lacks any of these names has no such place.
    """

    component: str
    source: str
    into: tuple[str, ...]
    part: tuple[int, int] = (0, 1)
    centred: bool = False

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
    attention_bias: bool = False
    qk_norm: bool = False  # every head of the queries and keys is normed before it is turned
    tied_head: bool = False  # the embedding is the head too; a checkpoint holds it once
    linear: LinearAttention | None = None
    latent: LatentAttention | None = None
    embedding_scale: float = 1.0  # what looked up embeddings are multiplied by, but not those of images
    residual_scale: float = 1.0  # what a layer adds is multiplied by
    head_divisor: float = 1.0  # what the head sees is divided by
    gated_attention: bool = False  # every head's queries are followed by a gate for what it returns
    centred_norms: bool = False  # norms scale by one more than their weight
    rope_width: int = 0  # channels of a head that are turned; 0 for all
    rope_sections: tuple[int, ...] = ()  # frequencies turned by time, row and column (M-RoPE); () for one position
    rope_interleaved: bool = False  # the axes take frequencies by turns, not a stretch each
    rope_factors: tuple[float, ...] = ()  # what LongRoPE divides every frequency by; () for 1
    rope_long_factors: tuple[float, ...] = ()  # and beyond the context
    permuted_rope: bool = False  # llama.cpp turns neighbours here, so it wants the rows of queries and keys reordered

    @property
    def turned_width(self) -> int:
        return self.rope_width or self.head_width

    def is_linear(self, layer: int) -> bool:
        """Whether a layer attends linearly."""
        return self.linear is not None and layer in self.linear.layers

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.hidden}, {self.vocabulary:,} tokens"


VisionKind = Literal["siglip-resampler", "timm-resampler", "siglip-merger", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"]


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of the vision tower and of the connector behind it; what a kind of tower does not have is 0."""

    kind: VisionKind  # which room of a format writes it
    hidden: int
    layers: int
    heads: int
    ffn: int
    patch: int  # side of a patch in pixels
    norm_epsilon: float
    grid: int = 0  # side of the table of position embeddings, in patches
    slice_side: int = 0  # pixels; a slice has about this side squared
    queries: int = 0  # image tokens a slice becomes
    one_row: bool = False  # patches take their position embeddings as if they lay in one long row
    frames: int = 0  # images that a patch covers; a still image is repeated
    merge: int = 1  # side of the square of patches that becomes one image token
    deep_layers: tuple[int, ...] = ()  # whose patches, merged, are added to what the first layers of language make
    merger_layer: int | None = None  # behind which squares of patches can be merged a first time
    merges_inside: bool = False  # and whether they are
    window: int = 0  # patches a side of the squares that attention stays in
    full_attention: tuple[int, ...] = ()  # layers whose attention stays in no square

    def __str__(self) -> str:
        tokens = f"{self.queries} tokens a slice" if self.queries else f"a token for {self.merge**2} patches"
        return f"{self.layers} layers of width {self.hidden}, {tokens}"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A config.json, read and checked."""

    language: LanguageShape
    vision: VisionShape | None  # None: the model reads text only

    @property
    def deepstack(self) -> int:
        """How many layers of language have features of images added."""
        return len(self.vision.deep_layers) if self.vision else 0

    @property
    def sees(self) -> VisionShape:
        """The vision tower of a model that is known to have one."""
        assert self.vision is not None
        return self.vision


@dataclass(frozen=True, slots=True)
class Inputs:
    """One sample as the model takes it: the same tokens and the same pixels for every engine.

    tokens: int64 [length], prompt and answer. answer_start: index of the first token of the answer; the
    answer ends with the end-of-turn token. slices: uint8 RGB [height, width, 3] each, sides multiples of
    the patch; a family that does not slice has one. image_bounds: int64 [slices, 2], the span of tokens that each
    slice's features replace. image: uint8 RGB [height, width, 3], the image before it was cut, only where an engine
    that can cut images itself is to do so.
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


class Pixels(Protocol):
    """What an engine that has tokens and slices already must still know of the family; needs no tokenizer."""

    def graph_inputs(self, part: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """One slice uint8 RGB [height, width, 3] as the vision graph takes it, by the names of its inputs."""

    def positions(self, inputs: Inputs) -> NDArray[np.int64]:
        """Where every token stands: int64 [length], or [3, length] by time, row and column (M-RoPE)."""


class InputsRoom(Protocol):
    """The module that `Family.inputs` names."""

    def open_processor(self, checkpoint: Path, layout: Layout) -> Processor: ...

    def open_pixels(self, folder: Path, layout: Layout) -> Pixels: ...


@dataclass(frozen=True, slots=True)
class Family:
    """Everything mcpmq knows about one kind of model."""

    name: str
    published: tuple[str, ...]  # checkpoints that are of it
    recognises: Callable[[Mapping[str, Any]], bool]  # from the raw config.json
    architecture: Callable[[Mapping[str, Any]], Architecture]
    tensors: Callable[[Architecture], tuple[TensorSpec, ...]]  # in the order of the forward pass
    inputs: str  # the module that makes inputs of samples, an `InputsRoom`
    native: str  # "module:function" that builds the torch model from the raw config on the meta device
    layout: Layout = SINCE_2_6  # of what those inputs are written in
    sees: bool = True  # False: it reads text only
    images_have_rows: bool = False  # tokens of an image stand on its rows and columns, not one after the other
    llama_cpp_version: int = 0  # its number of a MiniCPM-V: how it cuts images and what it puts around slices
    passed_through: tuple[tuple[str, str], ...] = ()  # component -> beginning of the hub names of its tensors
    caveats: tuple[tuple[str, str], ...] = ()  # by format, what an artifact does not do as the original
    refusals: tuple[tuple[str, str], ...] = ()  # by format, why it cannot hold the model
    fed_by: tuple[tuple[str, str], ...] = ()  # hub names: a matrix that no linear holds, and what feeds it its output
    folds: tuple[Fold, ...] = ()  # between which neighbours of a block scales may move

    def processor(self, checkpoint: Path) -> Processor:
        """What turns samples into inputs, from the text files of a checkpoint or of an artifact.

        Raises:
            CheckpointError: one is missing, broken, or contradicts another.
        """
        return self._inputs.open_processor(checkpoint, self.layout)

    def pixels(self, folder: Path) -> Pixels:
        """The part of it that needs no tokenizer.

        Raises:
            CheckpointError: a file is missing, broken, or contradicts another.
        """
        return self._inputs.open_pixels(folder, self.layout)

    @property
    def _inputs(self) -> InputsRoom:
        """Imported when it is asked for: plans are made without what reads images and text."""
        return cast(InputsRoom, import_module(self.inputs))
