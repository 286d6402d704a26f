"""SigLIP on tiles with a connector that merges squares of patches, the vision encoder of SmolVLM, in an mmproj file."""

from gguf import GGUFWriter
from PIL import Image

from mcpmq.errors import FormatError
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.families.smolvlm_inputs import AROUND_IMAGE, WHOLE_IMAGE, SmolVlmTiling
from mcpmq.formats.gguf.names import TensorNames
from mcpmq.formats.gguf.resampler import SIGLIP_LAYER_NAMES
from mcpmq.formats.gguf.vision_tower import VisionTower
from mcpmq.formats.model_view import ModelView

NAMES = TensorNames(
    global_names={
        "vision.patch_embedding": "v.patch_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.post_norm": "v.post_ln",
        "projector.out": "mm.model.fc",
    },
    layer_names={"vision": ("v.blk", SIGLIP_LAYER_NAMES)},
)


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    shape = model.architecture.required_vision
    assert isinstance(preprocessor, SmolVlmTiling)
    if not preprocessor.do_image_splitting:
        raise FormatError(
            "`do_image_splitting` is off, llama.cpp always cuts images into tiles",
            "export to another format, for example `onnx`",
        )
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", preprocessor.side)
    writer.add_uint32("clip.vision.preproc_image_size", preprocessor.size.longest_edge)
    writer.add_uint32("clip.vision.projection_dim", model.architecture.language.hidden_size)
    writer.add_uint32("clip.vision.projector.scale_factor", shape.spatial_merge_size)


SIGLIP_TILES = VisionTower(
    projector_type="idefics3",
    names=NAMES,
    required_tokens=(AROUND_IMAGE, WHOLE_IMAGE, "<row_1_col_1>", "\n", "\n\n"),
    add_metadata=_add_metadata,
    resample=int(Image.Resampling.LANCZOS),
)
