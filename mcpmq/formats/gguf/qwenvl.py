"""The vision tower of Qwen2-VL in llama.cpp's multimodal part: names, sizes, and what it refuses."""

from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.formats.gguf.names import Names
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.quantized import Quantized

PROJECTOR = "qwen2vl_merger"
CHANNELS = "image_{}"  # keys of preprocessor_config.json for the mean and the spread of colours
TOKENS: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>")  # llama.cpp looks them up
FRAMES, MERGE = 2, 2  # what llama.cpp assumes
IMAGE_SIDE = 560  # pixels; llama.cpp asks for one although images have any size, and this is the one it is given
NAMES = Names(
    whole={
        "vision.patch_embedding": ("v.patch_embd", "v.patch_embd.weight.1"),  # one for each frame
        "projector.norm": "v.post_ln",
        "projector.up": "mm.0",
        "projector.down": "mm.2",
    },
    layers={
        "vision": (
            "v.blk",
            {
                "norm1": "ln1",
                "attention.qkv": ("attn_q", "attn_k", "attn_v"),
                "attention.o": "attn_out",
                "norm2": "ln2",
                "mlp.up": "ffn_up",
                "mlp.down": "ffn_down",
            },
        )
    },
)


def unread_slots(quantized: Quantized) -> list[Slot]:
    """None: llama.cpp reads all that it asks for."""
    return []


def add_metadata(writer: GGUFWriter, quantized: Quantized, preprocessor: Mapping[str, Any]) -> None:
    """What only this kind of tower has.

    Raises:
        FormatError: llama.cpp assumes other patches.
    """
    shape = quantized.architecture.sees
    if (shape.frames, shape.merge) != (FRAMES, MERGE):
        raise FormatError(
            f"patches cover {shape.frames} frames and {shape.merge}x{shape.merge} of them become a token,"
            f" llama.cpp assumes {FRAMES} and {MERGE}x{MERGE}"
        )
    writer.add_uint32("clip.vision.image_size", IMAGE_SIDE)
    writer.add_uint32("clip.vision.projection_dim", quantized.architecture.language.hidden)
