"""Description of a model family: its tensors, hyperparameters, inputs and torch class, as data and three functions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from mcpmq.dataset import ImageSource, Turn
from mcpmq.families.audio_shape import AudioShape
from mcpmq.families.inputs import Inputs
from mcpmq.families.language_shape import LanguageShape
from mcpmq.families.messages import Message
from mcpmq.families.prompt_format import MINICPM_V_FORMAT, PromptFormat

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Role = Literal["matrix", "table", "other"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint.

    `name` is the common name, the same in all families; recipes match it. A `matrix` multiplies activations and the
    rows of a `table` are looked up: both can be quantized. A tensor with the role `other` keeps its dtype.
    """

    name: str
    hub_name: str  # in the published checkpoint
    shape: tuple[int, ...]
    role: Role = "other"
    transposed: bool = False  # stored as [in, out]; the common layout is [out, in]
    paddable_axis: Literal["rows", "columns"] | None = None  # zero padding of this axis does not change the output
    module_names: tuple[str, ...] = ()  # parameters of the torch module with this value; () for `hub_name`
    alias: str = ""  # second name in recipes: a tied embedding is also called `head`
    head_columns: int = 0  # a format may reorder the columns in units of this many, those of a head; 0: never

    @property
    def component(self) -> str:
        """First part of the common name, for example `vision` or `language`."""
        return self.name.partition(".")[0]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the torch parameters with this value; more than one for a shared tensor."""
        return self.module_names or (self.hub_name,)


@dataclass(frozen=True, slots=True)
class SmoothingMapping:
    """Adjacent layers between which scales can move without a change of the model output.

    The output channels of `smooth_layer` (a norm or a matrix, and its bias) are divided by one scale per channel; the
    matching columns of the `balance_layers` are multiplied by it. Names are common names inside one block of
    `component`; a block without one of these names does not have this mapping. All layers that read the channels are in
    `balance_layers`. If they read query heads that share a value head, their columns share its scales.

    `row_chunk` is (index, count): the output rows of `smooth_layer` are split into `count` equal chunks, and the chunk
    `index` is scaled. A norm with `offset_norm` multiplies by 1 + weight.
    """

    component: str
    smooth_layer: str
    balance_layers: tuple[str, ...]
    row_chunk: tuple[int, int] = (0, 1)
    offset_norm: bool = False

    def in_block(self, block: str) -> "SmoothingMapping":
        """Return the mapping with full common names for one block, for example `language.layers.0`."""
        balance_layers = tuple(f"{block}.{name}" for name in self.balance_layers)
        return replace(self, smooth_layer=f"{block}.{self.smooth_layer}", balance_layers=balance_layers)


QwenVisionKind = Literal["qwen2-vl", "qwen2.5-vl", "qwen2.5-omni", "qwen3-vl"]
SiglipKind = Literal[
    "siglip-resampler", "timm-resampler", "siglip-merger", "siglip-tiles", "siglip-pooled", "siglip-naflex"
]
VisionKind = Literal["internvit", SiglipKind, QwenVisionKind]


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Hyperparameters of a vision encoder and its connector; 0 for a size that the kind does not have."""

    kind: VisionKind  # selects the writer of each format
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    patch_size: int  # pixels
    norm_epsilon: float
    position_grid_size: int = 0  # side of the position embedding table, in patches
    slice_resolution: int = 0  # pixels; a slice has about the area of a square with this side
    num_queries: int = 0  # image tokens per slice
    flat_positions: bool = False  # position embeddings are indexed as if all patches were in one row
    temporal_patch_size: int = 0  # frames per patch; a still image is repeated
    spatial_merge_size: int = 1  # side of the square of patches that becomes one image token
    deepstack_layers: tuple[int, ...] = ()  # their merged features are added in the first language layers (DeepStack)
    merger_layer: int | None = None  # the merger inside the encoder follows this layer
    uses_vit_merger: bool = False  # the merger inside the encoder is active
    window_size: int = 0  # side of an attention window, in patches
    full_attention_layers: tuple[int, ...] = ()  # layers without attention windows
    projector_size: int = 0  # channels between the two matrices of a projector that has a size of its own
    projector_norm: bool = True  # the projector begins with a norm

    def __str__(self) -> str:
        per_patches = f"1 token per {self.spatial_merge_size**2} patches"
        tokens = f"{self.num_queries} tokens per slice" if self.num_queries else per_patches
        return f"{self.num_layers} layers of width {self.hidden_size}, {tokens}"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Hyperparameters from a validated config.json."""

    language: LanguageShape
    vision: VisionShape | None  # None for a model without a vision encoder
    audio: AudioShape | None = None  # None for a model without an audio encoder

    @property
    def num_deepstack_layers(self) -> int:
        """Number of language layers that add image features."""
        return len(self.vision.deepstack_layers) if self.vision else 0

    @property
    def required_vision(self) -> VisionShape:
        """Vision hyperparameters of a model with a vision encoder."""
        assert self.vision is not None
        return self.vision

    @property
    def required_audio(self) -> AudioShape:
        """Audio hyperparameters of a model with an audio encoder."""
        assert self.audio is not None
        return self.audio


class Processor(Protocol):
    """Converts samples and chats to model inputs with the text files of a checkpoint."""

    @property
    def tokenizer(self) -> "Tokenizer": ...
    @property
    def special_tokens(self) -> Mapping[str, int]: ...
    @property
    def context_length(self) -> int: ...
    def encode(self, sample_id: str, image: ImageSource | None, prompt: str, answer: str) -> Inputs:
        """Encode a prompt, after its image if any, and the answer to it."""

    def encode_turns(self, sample_id: str, turns: Sequence[Turn]) -> Inputs:
        """Encode a conversation that ends with an answer."""

    def encode_chat(self, messages: Sequence[Message]) -> Inputs:
        """Encode the prompt for the next message of a chat; `answer_start` is the number of its tokens."""

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the keyword arguments of the torch module's forward, with a batch dimension of 1."""


class VisionInputs(Protocol):
    """Vision graph inputs and position ids of encoded samples; needs no tokenizer."""

    def graph_inputs(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one slice, uint8 RGB [height, width, 3], by input name."""

    def audio_graph_inputs(self, samples: NDArray[np.float32]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the inputs of the audio graph by input name, for each segment of mono samples at 16 kHz."""

    def image_tokens(self, width: int, height: int, num_queries: int) -> int: ...
    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return token positions: int64 [length], or [3, length] with time, row and column (M-RoPE)."""


class InputsModule(Protocol):
    """Interface of the module in `Family.inputs_module`."""

    def open_processor(self, checkpoint: Path, prompt_format: PromptFormat) -> Processor: ...

    def open_vision_inputs(self, folder: Path, prompt_format: PromptFormat) -> VisionInputs: ...


@dataclass(frozen=True, slots=True)
class Family:
    """Description of a model family."""

    name: str
    hub_ids: tuple[str, ...]  # published checkpoints
    matches: Callable[[Mapping[str, Any]], bool]  # predicate on the raw config.json
    parse_architecture: Callable[[Mapping[str, Any]], Architecture]
    tensor_specs: Callable[[Architecture], tuple[TensorSpec, ...]]  # in forward order
    inputs_module: str  # module name, implements `InputsModule`
    torch_builder: str  # "module:function" that builds the torch model from the raw config.json on the meta device
    prompt_format: PromptFormat = MINICPM_V_FORMAT
    has_vision: bool = True
    has_audio: bool = False
    uses_mrope: bool = False  # image tokens have row and column positions (M-RoPE)
    minicpmv_version: int = 0  # `clip.minicpmv_version` of llama.cpp: selects its slicing and slice tags
    passthrough: tuple[tuple[str, str], ...] = ()  # (component, hub name prefix) of tensors that are copied unchanged
    without_audio: tuple[tuple[str, str], ...] = ()  # (format, reason) of formats that have audio on request only
    speech_switch: str = ""  # key of config.json that enables speech output in the software that loads a checkpoint
    caveats: tuple[tuple[str, str], ...] = ()  # (format, difference between an artifact and the original)
    unsupported_formats: tuple[tuple[str, str], ...] = ()  # (format, reason)
    input_from: tuple[tuple[str, str], ...] = ()  # hub names (matrix outside an nn.Linear, module with its input)
    smoothing_mappings: tuple[SmoothingMapping, ...] = ()

    def __reduce__(self) -> tuple[Callable[[str], "Family"], tuple[str]]:
        return import_module("mcpmq.families").family_named, (self.name,)  # its functions cannot be pickled

    def open_processor(self, checkpoint: Path) -> Processor:
        """Open the processor with the text files of a checkpoint or an artifact.

        Raises:
            CheckpointError: a file is missing or invalid, or two files contradict each other.
        """
        return self._inputs().open_processor(checkpoint, self.prompt_format)

    def open_vision_inputs(self, folder: Path) -> VisionInputs:
        """Open the part of the processor that needs no tokenizer.

        Raises:
            CheckpointError: a file is missing or invalid, or two files contradict each other.
        """
        return self._inputs().open_vision_inputs(folder, self.prompt_format)

    def _inputs(self) -> InputsModule:
        """Import lazily: planning needs neither an image library nor a tokenizer."""
        return cast(InputsModule, import_module(self.inputs_module))
