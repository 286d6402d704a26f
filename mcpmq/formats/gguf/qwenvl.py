"""The vision towers of Qwen2-VL, 2.5 and 3 in llama.cpp's multimodal part: names, sizes, and what it refuses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families.family import VisionShape
from mcpmq.formats.gguf.names import Names
from mcpmq.formats.gguf.vision_tower import Tower
from mcpmq.formats.model_view import Declared

FRAMES, MERGE = 2, 2  # what llama.cpp assumes
WINDOW = 8  # patches a side
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
                "mlp.gate": "ffn_gate",
                "mlp.up": "ffn_up",
                "mlp.down": "ffn_down",
            },
        )
    },
)


def _add_metadata(writer: GGUFWriter, quantized: Declared, preprocessor: Mapping[str, Any]) -> None:
    """What only this kind of tower has.

    Raises:
        FormatError: llama.cpp assumes other patches.
    """
    _refuse_other_patches(quantized.architecture.sees)
    writer.add_uint32("clip.vision.image_size", IMAGE_SIDE)
    writer.add_uint32("clip.vision.projection_dim", quantized.architecture.language.hidden)


def _refuse_other_patches(shape: VisionShape) -> None:
    if (shape.frames, shape.merge) != (FRAMES, MERGE):
        raise FormatError(
            f"patches cover {shape.frames} frames and {shape.merge}x{shape.merge} of them become a token,"
            f" llama.cpp assumes {FRAMES} and {MERGE}x{MERGE}"
        )


def _add_metadata_of_2_5(writer: GGUFWriter, quantized: Declared, preprocessor: Mapping[str, Any]) -> None:
    shape = quantized.architecture.sees
    period = shape.full_attention[0] + 1 if shape.full_attention else 0
    if shape.window != WINDOW or not period or shape.full_attention != tuple(range(period - 1, shape.layers, period)):
        raise FormatError(
            f"attention stays in {shape.window}x{shape.window} patches but in layers {list(shape.full_attention)},"
            f" llama.cpp assumes {WINDOW}x{WINDOW}, but in every nth layer"
        )
    _add_metadata(writer, quantized, preprocessor)
    writer.add_bool("clip.use_silu", True)
    writer.add_uint32("clip.vision.n_wa_pattern", period)


QWEN2_VL = Tower(
    projector="qwen2vl_merger",
    names=NAMES,
    tokens=("<|vision_start|>", "<|vision_end|>"),
    channels="image_{}",
    add_metadata=_add_metadata,
)
QWEN2_5_VL = replace(QWEN2_VL, projector="qwen2.5vl_merger", add_metadata=_add_metadata_of_2_5)


NAMES_OF_3 = Names(
    whole={
        **NAMES.whole,
        "vision.patch_embedding.bias": "v.patch_embd.bias",
        "vision.position_embedding": "v.position_embd",
    },
    layers={
        "vision": ("v.blk", {**NAMES.layers["vision"][1], "attention.qkv": "attn_qkv"}),
        "projector": ("v.deepstack", {"norm": "norm", "up": "fc1", "down": "fc2"}),
    },
)


def _add_metadata_of_3(writer: GGUFWriter, quantized: Declared, preprocessor: Mapping[str, Any]) -> None:
    shape = quantized.architecture.sees
    _refuse_other_patches(shape)
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", shape.grid * shape.patch)
    writer.add_uint32("clip.vision.projection_dim", quantized.architecture.language.hidden)
    writer.add_uint32("clip.vision.spatial_merge_size", shape.merge)
    deep = [layer in shape.deep_layers for layer in range(shape.layers)]
    writer.add_array("clip.vision.is_deepstack_layers", deep)


QWEN3_VL = replace(QWEN2_VL, projector="qwen3vl_merger", names=NAMES_OF_3, add_metadata=_add_metadata_of_3)
