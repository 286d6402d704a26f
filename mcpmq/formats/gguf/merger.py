"""SigLIP with two mergers, the vision encoder of MiniCPM-V 4.6, in an mmproj file."""

from dataclasses import replace

from gguf import GGUFWriter

from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.formats.gguf.names import TensorNames
from mcpmq.formats.gguf.resampler import SIGLIP_LAYER_NAMES, SIGLIP_RESAMPLER, check_position_table
from mcpmq.formats.model_view import ModelView

NAMES = TensorNames(
    global_names={
        "vision.patch_embedding": "v.patch_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.post_norm": "v.post_ln",
        "vision.merger.norm1": "v.vit_merger.ln1",
        "vision.merger.attention.q": "v.vit_merger.attn_q",
        "vision.merger.attention.k": "v.vit_merger.attn_k",
        "vision.merger.attention.v": "v.vit_merger.attn_v",
        "vision.merger.attention.o": "v.vit_merger.attn_out",
        "vision.merger.norm2": "v.vit_merger.ds_ln",
        "vision.merger.up": "v.vit_merger.ds_ffn_up",
        "vision.merger.down": "v.vit_merger.ds_ffn_down",
        "projector.norm": "mm.input_norm",
        "projector.up": "mm.up",
        "projector.down": "mm.down",
    },
    layer_names={"vision": ("v.blk", SIGLIP_LAYER_NAMES)},
)


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    shape = model.architecture.required_vision
    check_position_table(shape)
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", preprocessor.slice_resolution)
    writer.add_uint32("clip.vision.projection_dim", model.architecture.language.hidden_size)
    writer.add_uint32("clip.vision.projector.scale_factor", shape.spatial_merge_size)
    writer.add_array("clip.vision.wa_layer_indexes", [shape.merger_layer])


SIGLIP_MERGER = replace(
    SIGLIP_RESAMPLER,
    projector_type="minicpmv4_6",
    names=NAMES,
    add_metadata=_add_metadata,
    unused_tensors=lambda _: [],
)
