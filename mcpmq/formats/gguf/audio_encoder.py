"""The audio encoders of an mmproj file: names, metadata and shapes that llama.cpp expects of the layers of Whisper."""

from dataclasses import replace

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.formats.gguf.resampler import SIGLIP_LAYER_NAMES
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.model_view import ModelView

AUDIO_LAYER_NAMES = SIGLIP_LAYER_NAMES
AUDIO_NAMES = {"audio.conv1": "a.conv1d.1", "audio.conv2": "a.conv1d.2"}
AUDIO_PREFIXES = ("a.", "mm.a.")  # of the names of all tensors
OTHER_FORMAT_HINT = "export to another format, for example `onnx`"


def audio_tensor(tensor: GgufTensor) -> GgufTensor:
    """Return a tensor with the shape that llama.cpp adds: the bias of a convolution has a second axis."""
    source = tensor.source or ""
    if not (source.startswith("audio.conv") and source.endswith(".bias")):
        return tensor
    return replace(tensor, shape=(*tensor.shape, 1), transform=lambda bias: bias.float()[:, None])


def add_audio_metadata(writer: GGUFWriter, model: ModelView) -> None:
    """Write the sizes of the audio encoder.

    Raises:
        FormatError: llama.cpp would compute a different function.
    """
    shape = model.architecture.required_audio
    if shape.intermediate_size == shape.hidden_size:
        raise FormatError(
            f"the audio encoder has an MLP of its width {shape.hidden_size}, whose matrices llama.cpp would exchange",
            OTHER_FORMAT_HINT,
        )
    writer.add_bool("clip.has_audio_encoder", True)
    writer.add_uint32("clip.audio.num_mel_bins", shape.num_mel_bins)
    writer.add_uint32("clip.audio.embedding_length", shape.hidden_size)
    writer.add_uint32("clip.audio.feed_forward_length", shape.intermediate_size)
    writer.add_uint32("clip.audio.block_count", shape.num_layers)
    writer.add_uint32("clip.audio.attention.head_count", shape.num_heads)
    writer.add_float32("clip.audio.attention.layer_norm_epsilon", shape.norm_epsilon)
    writer.add_uint32("clip.audio.projection_dim", model.architecture.language.hidden_size)
