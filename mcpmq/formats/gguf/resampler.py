"""SigLIP with a resampler, the vision encoder of MiniCPM-V 2.5 and 2.6, in an mmproj file."""

from dataclasses import replace

from gguf import GGMLQuantizationType, GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.families.family import VisionShape
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.formats.gguf import position_tables
from mcpmq.formats.gguf.names import TensorNames
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.gguf.vision_tower import VisionTower
from mcpmq.formats.model_view import ModelView

POSITION_TABLE_SIDE = 70  # llama.cpp indexes position embeddings on a grid of 70 x 70
UNUSED_TABLE = "resampler.pos_embed_k"
SIGLIP_LAYER_NAMES = {
    "norm1": "ln1",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_out",
    "norm2": "ln2",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
NAMES = TensorNames(
    global_names={
        "vision.patch_embedding": "v.patch_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.post_norm": "v.post_ln",
        "projector.query": "resampler.query",
        "projector.kv": "resampler.kv",
        "projector.norm_q": "resampler.ln_q",
        "projector.norm_kv": "resampler.ln_kv",
        "projector.norm_post": "resampler.ln_post",
        "projector.attention.qkv": ("resampler.attn.q", "resampler.attn.k", "resampler.attn.v"),
        "projector.attention.o": "resampler.attn.out",
        "projector.out": "resampler.proj",
    },
    layer_names={"vision": ("v.blk", SIGLIP_LAYER_NAMES)},
)


def _unused_tensors(model: ModelView) -> list[GgufTensor]:
    """Return a position table that llama.cpp requires but does not read; one row is enough."""
    return [GgufTensor(UNUSED_TABLE, None, (1, model.architecture.language.hidden_size), GGMLQuantizationType.F32)]


def _reorder_flat_positions(model: ModelView, tensor: GgufTensor) -> GgufTensor:
    """Reorder the position table of a model that numbers patches in one sequence for llama.cpp's 2D lookup."""
    shape = model.architecture.required_vision
    if not shape.flat_positions or tensor.source != "vision.position_embedding":
        return tensor
    rows = position_tables.flat_position_rows(POSITION_TABLE_SIDE, shape.slice_resolution // shape.patch_size)
    return replace(tensor, source_rows=rows, reason="rows are reordered for llama.cpp's 2D position lookup")


def check_position_table(shape: VisionShape) -> None:
    """Check that the position grid is the one that llama.cpp indexes.

    Raises:
        FormatError: it is not.
    """
    if shape.position_grid_size != POSITION_TABLE_SIDE:
        raise FormatError(
            f"the vision encoder has a position grid of side {shape.position_grid_size}, llama.cpp requires"
            f" {POSITION_TABLE_SIDE}",
            "export to another format: `onnx` supports any position grid",
        )


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    check_position_table(model.architecture.required_vision)
    add_slice_metadata(writer, model, preprocessor)


def add_slice_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    """Write the slice resolution and the number of queries per slice.

    Raises:
        FormatError: the preprocessor and the model have different slice resolutions.
    """
    shape = model.architecture.required_vision
    resolution = preprocessor.slice_resolution
    if resolution != shape.slice_resolution:
        raise FormatError(
            f"preprocessor_config.json has slices of {resolution} pixels, config.json of {shape.slice_resolution}",
            "compare both files with the published checkpoint",
        )
    writer.add_int32("clip.minicpmv_version", family_named(model.artifact.manifest.family).minicpmv_version)
    writer.add_uint32("clip.minicpmv_query_num", shape.num_queries)
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", shape.slice_resolution)
    writer.add_uint32("clip.vision.projection_dim", 0)


SIGLIP_RESAMPLER = VisionTower(
    projector_type="resampler",
    names=NAMES,
    required_tokens=("<image>", "</image>", "<slice>", "</slice>", "\n"),
    add_metadata=_add_metadata,
    unused_tensors=_unused_tensors,
    transform=_reorder_flat_positions,
)
