"""The vision encoders of Qwen2-VL, Qwen2.5-VL and Qwen3-VL in an mmproj file."""

from dataclasses import replace

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families.family import VisionShape
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.families.qwenvl_resizing import Resizing
from mcpmq.formats.gguf.names import TensorNames
from mcpmq.formats.gguf.vision_tower import VisionTower
from mcpmq.formats.model_view import ModelView

TEMPORAL_PATCH_SIZE, SPATIAL_MERGE_SIZE = 2, 2  # constants of llama.cpp
WINDOW_SIDE = 8  # patches; a constant of llama.cpp
IMAGE_SIDE = 560  # pixels; llama.cpp requires a value, although images may have any size
LAYER_NAMES: dict[str, str | tuple[str, ...]] = {
    "norm1": "ln1",
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.o": "attn_out",
    "norm2": "ln2",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
NAMES = TensorNames(
    global_names={
        "vision.patch_embedding": ("v.patch_embd", "v.patch_embd.weight.1"),  # one per frame
        "projector.norm": "v.post_ln",
        "projector.up": "mm.0",
        "projector.down": "mm.2",
    },
    layer_names={"vision": ("v.blk", LAYER_NAMES)},
)


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    _check_patches(model.architecture.required_vision)
    writer.add_uint32("clip.vision.image_size", IMAGE_SIDE)
    writer.add_uint32("clip.vision.projection_dim", model.architecture.language.hidden_size)
    _add_pixel_bounds(writer, model, preprocessor)


def _add_pixel_bounds(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    """Write the bounds of an image if a recipe sets them; else llama.cpp has its own."""
    if model.artifact.manifest.images:
        assert isinstance(preprocessor, Resizing)
        writer.add_uint32("clip.vision.image_min_pixels", preprocessor.size.shortest_edge)
        writer.add_uint32("clip.vision.image_max_pixels", preprocessor.size.longest_edge)


def _check_patches(shape: VisionShape) -> None:
    if (shape.temporal_patch_size, shape.spatial_merge_size) != (TEMPORAL_PATCH_SIZE, SPATIAL_MERGE_SIZE):
        raise FormatError(
            f"the model has temporal patch size {shape.temporal_patch_size} and spatial merge size"
            f" {shape.spatial_merge_size}, llama.cpp supports {TEMPORAL_PATCH_SIZE} and {SPATIAL_MERGE_SIZE}",
            "export to another format, for example `onnx`",
        )


def _add_qwen2_5_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    period = _full_attention_period(model.architecture.required_vision)
    _add_metadata(writer, model, preprocessor)
    writer.add_bool("clip.use_silu", True)
    writer.add_uint32("clip.vision.n_wa_pattern", period)


def _full_attention_period(shape: VisionShape) -> int:
    """Return n where every nth layer has full attention; all others have window attention."""
    layers = shape.full_attention_layers
    period = layers[0] + 1 if layers else 0
    if shape.window_size != WINDOW_SIDE or not period or layers != tuple(range(period - 1, shape.num_layers, period)):
        raise FormatError(
            f"windows have {shape.window_size}x{shape.window_size} patches and layers {list(layers)} have full"
            f" attention; llama.cpp supports windows of {WINDOW_SIDE}x{WINDOW_SIDE} and full attention in every nth"
            " layer",
            "export to another format, for example `onnx`",
        )
    return period


QWEN2_VL = VisionTower(
    projector_type="qwen2vl_merger",
    names=NAMES,
    required_tokens=("<|vision_start|>", "<|vision_end|>"),
    add_metadata=_add_metadata,
)
QWEN2_5_VL = replace(QWEN2_VL, projector_type="qwen2.5vl_merger", add_metadata=_add_qwen2_5_metadata)


QWEN3_VL_NAMES = TensorNames(
    global_names={
        **NAMES.global_names,
        "vision.patch_embedding.bias": "v.patch_embd.bias",
        "vision.position_embedding": "v.position_embd",
    },
    layer_names={
        "vision": ("v.blk", {**LAYER_NAMES, "attention.qkv": "attn_qkv"}),
        "projector": ("v.deepstack", {"norm": "norm", "up": "fc1", "down": "fc2"}),
    },
)


def _add_qwen3_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    shape = model.architecture.required_vision
    _check_patches(shape)
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", shape.position_grid_size * shape.patch_size)
    writer.add_uint32("clip.vision.projection_dim", model.architecture.language.hidden_size)
    writer.add_uint32("clip.vision.spatial_merge_size", shape.spatial_merge_size)
    is_deepstack = [layer in shape.deepstack_layers for layer in range(shape.num_layers)]
    writer.add_array("clip.vision.is_deepstack_layers", is_deepstack)
    _add_pixel_bounds(writer, model, preprocessor)


QWEN3_VL = replace(QWEN2_VL, projector_type="qwen3vl_merger", names=QWEN3_VL_NAMES, add_metadata=_add_qwen3_metadata)
