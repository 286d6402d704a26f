"""The vision and audio encoders of MiniCPM-o 2.6 in one mmproj file, the audio under the projector `glma`.

llama.cpp has no projector for the audio of MiniCPM-o. `glma` stacks frames, then has a linear layer, GELU and a second
linear layer. The first layer of MiniCPM-o becomes block-diagonal, one block for each stacked frame, and the second has
the pooling in its columns. GELU of values scaled by a large factor is ReLU. Padding and attention are those of `glma`,
not those of the original: see `AUDIO_CAVEAT`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType, GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families.family import Architecture
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.formats.gguf import resampler
from mcpmq.formats.gguf.audio_encoder import AUDIO_LAYER_NAMES, AUDIO_NAMES, add_audio_metadata, audio_tensor
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.gguf.vision_tower import ALL_COMPONENTS
from mcpmq.formats.model_view import ModelView

if TYPE_CHECKING:  # a forecast needs no torch
    from torch import Tensor

PROJECTOR = "glma"
AUDIO_CAVEAT = (
    "audio under the projector `glma` of llama.cpp: padded with silence to segments of 30 seconds, and every frame"
    " attends to all, where the original attends to its second and those before"
)
GELU_SCALE = 4096.0  # a power of two, which changes no mantissa; GELU(x) is ReLU(x) for large x
UP, DOWN = "audio_projector.up", "audio_projector.down"
UP_BIAS = f"{UP}.bias"
TAG_TENSORS = {"v.boi": "<|audio_start|>", "v.eoi": "<|audio_end|>"}  # embeddings around those of the audio
STACKED_REASON = "one block for each stacked frame, scaled so that GELU is ReLU, and the pooling"
BF16, F32 = GGMLQuantizationType.BF16, GGMLQuantizationType.F32


def stacked_frames(architecture: Architecture, name: str) -> int:
    """Return the number of inputs of a matrix of the checkpoint that are side by side in the file."""
    return architecture.required_audio.pool_size if name in (UP, DOWN) else 1


def block_diagonal(weight: "Tensor", frames: int) -> "Tensor":
    """Return the first layer for stacked frames: [frames * rows, frames * columns]."""
    rows, columns = weight.shape
    stacked = weight.new_zeros((frames * rows, frames * columns)).float()
    for frame in range(frames):
        stacked[frame * rows : (frame + 1) * rows, frame * columns : (frame + 1) * columns] = weight * GELU_SCALE
    return stacked


def repeated_bias(bias: "Tensor", frames: int) -> "Tensor":
    """Return the bias of the first layer for stacked frames: [frames * rows]."""
    return bias.float().repeat(frames) * GELU_SCALE


def pooling_columns(weight: "Tensor", frames: int) -> "Tensor":
    """Return the second layer, whose columns compute the mean over stacked frames: [rows, frames * columns]."""
    return weight.float().repeat(1, frames) / (frames * GELU_SCALE)


def _transform(model: ModelView, tensor: GgufTensor) -> GgufTensor:
    frames, source = model.architecture.required_audio.pool_size, tensor.source or ""
    if source == UP_BIAS:
        transform = partial(repeated_bias, frames=frames)
        return replace(tensor, shape=(frames * tensor.shape[0],), transform=transform, reason=STACKED_REASON)
    if source not in (UP, DOWN):
        return audio_tensor(tensor)
    kind = _projector_type(model, tensor)
    stack = partial(block_diagonal if source == UP else pooling_columns, frames=frames)
    rows, columns = tensor.shape
    shape = (frames * rows if source == UP else rows, frames * columns)
    transform = partial(_stacked_bfloat16, stack=stack) if kind == BF16 else stack
    return replace(tensor, type=kind, shape=shape, transform=transform, reason=STACKED_REASON)


def _stacked_bfloat16(weight: "Tensor", stack: "Callable[[Tensor], Tensor]") -> "Tensor":
    return stack(weight).bfloat16()


def _projector_type(model: ModelView, tensor: GgufTensor) -> GGMLQuantizationType:
    """Return the type of a stacked matrix, whose small values F16 would round: BF16 if it is exact, else F32.

    Raises:
        FormatError: the matrix is quantized.
    """
    assert tensor.source
    scheme = model.scheme(tensor.source)
    if scheme is not None and scheme.is_quantized:
        raise FormatError(
            f"`gguf` cannot store `{tensor.source}` as `{scheme}` for the projector `{PROJECTOR}`, which stacks frames",
            'add `"audio_projector.*" = "keep"` at the end of the recipe',
        )
    return BF16 if tensor.type == BF16 else F32


def _tag_tensors(model: ModelView) -> list[GgufTensor]:
    """Return the table that llama.cpp requires for images, and the embeddings of the tags around audio."""
    shape = (1, model.architecture.language.hidden_size)
    tags = [
        GgufTensor(name, None, shape, F32, compute=partial(_embedding, model, token))
        for name, token in TAG_TENSORS.items()
    ]
    return [*resampler.SIGLIP_RESAMPLER.unused_tensors(model), *tags]


def _embedding(model: ModelView, token: str) -> "Tensor":
    """Return the embedding of a token in the model that is written: float32 [1, hidden]."""
    import torch

    from mcpmq.families.tokenizer import read_tokenizer
    from mcpmq.grids import dequantize
    from mcpmq.quantized_model import QuantizedModel

    index = read_tokenizer(model.path).token_to_id(token)
    assert index is not None, "the processor requires the token"
    assert isinstance(model, QuantizedModel), "a forecast has no values"
    table = model.load("embedding")
    if isinstance(table, torch.Tensor):
        return table[index : index + 1].float()
    return dequantize(table.slice_rows(slice(index, index + 1)))


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    resampler.SIGLIP_RESAMPLER.add_metadata(writer, model, preprocessor)
    add_audio_metadata(writer, model)
    writer.add_string("clip.audio.projector_type", PROJECTOR)
    writer.add_uint32("clip.audio.projector.stack_factor", model.architecture.required_audio.pool_size)


MINICPM_O = replace(
    resampler.SIGLIP_RESAMPLER,
    projector_key="clip.vision.projector_type",
    components=ALL_COMPONENTS,
    names=replace(
        resampler.NAMES,
        global_names={
            **resampler.NAMES.global_names,
            **AUDIO_NAMES,
            "audio.position_embedding": "a.position_embd",
            "audio.post_norm": "mm.a.norm_pre",
            UP: "mm.a.mlp.1",
            DOWN: "mm.a.mlp.2",
        },
        layer_names={**resampler.NAMES.layer_names, "audio": ("a.blk", AUDIO_LAYER_NAMES)},
    ),
    required_tokens=(*resampler.SIGLIP_RESAMPLER.required_tokens, *TAG_TENSORS.values()),
    add_metadata=_add_metadata,
    unused_tensors=_tag_tensors,
    transform=_transform,
)
