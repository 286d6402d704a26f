"""The vision and audio encoders of Qwen2.5-Omni in one mmproj file."""

from dataclasses import replace
from functools import partial

from gguf import GGMLQuantizationType, GGUFWriter

from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.families.whisper import sinusoids
from mcpmq.formats.gguf import qwenvl
from mcpmq.formats.gguf.audio_encoder import AUDIO_LAYER_NAMES, AUDIO_NAMES, add_audio_metadata, audio_tensor
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.gguf.vision_tower import ALL_COMPONENTS, VisionTower
from mcpmq.formats.model_view import ModelView

MAX_FRAMES = 1500  # encoder frames of the segments of 30 seconds that llama.cpp encodes
UNUSED_TABLE = "audio.unused_tokens"
VISION_LAYER_NAMES = {name: file_name for name, file_name in qwenvl.LAYER_NAMES.items() if name != "attention.qkv"}
VISION_LAYER_NAMES |= {f"attention.{part}": f"attn_{part}" for part in "qkv"}


def _transform(_: ModelView, tensor: GgufTensor) -> GgufTensor | None:
    return None if tensor.source == UNUSED_TABLE else audio_tensor(tensor)


def _position_table(model: ModelView) -> list[GgufTensor]:
    """Return the positions of a whole segment: llama.cpp reads a table, the original computes those of 2 seconds."""
    width = model.architecture.required_audio.hidden_size
    compute = partial(sinusoids, MAX_FRAMES, width)
    shape = (MAX_FRAMES, width)
    return [GgufTensor("a.position_embd.weight", None, shape, GGMLQuantizationType.F32, compute=compute)]


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    qwenvl.QWEN2_5_VL.add_metadata(writer, model, preprocessor)
    add_audio_metadata(writer, model)


QWEN2_5_OMNI = VisionTower(
    projector_type="qwen2.5o",
    components=ALL_COMPONENTS,
    names=replace(
        qwenvl.NAMES,
        global_names={
            **qwenvl.NAMES.global_names,
            **AUDIO_NAMES,
            "audio.post_norm": "a.post_ln",
            "audio_projector.out": "mm.a.fc",
            UNUSED_TABLE: "a.unused",
        },
        layer_names={"vision": ("v.blk", VISION_LAYER_NAMES), "audio": ("a.blk", AUDIO_LAYER_NAMES)},
    ),
    required_tokens=("<|vision_bos|>", "<|vision_eos|>", "<|audio_bos|>", "<|audio_eos|>"),
    add_metadata=_add_metadata,
    unused_tensors=_position_table,
    transform=_transform,
)
