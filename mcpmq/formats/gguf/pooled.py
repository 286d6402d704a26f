"""SigLIP with a projector that averages squares of patches, the vision encoder of Gemma 3, in an mmproj file."""

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf import GGMLQuantizationType, GGUFWriter
from PIL import Image

from mcpmq.families.gemma_inputs import IMAGE_END, IMAGE_START
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.formats.gguf.names import TensorNames, add_one
from mcpmq.formats.gguf.resampler import SIGLIP_LAYER_NAMES
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.gguf.vision_tower import VisionTower
from mcpmq.formats.model_view import ModelView

if TYPE_CHECKING:  # a forecast needs no torch
    from torch import Tensor

NAMES = TensorNames(
    global_names={
        "vision.patch_embedding": "v.patch_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.post_norm": "v.post_ln",
        "projector.norm": "mm.soft_emb_norm",
        "projector.out": "mm.input_projection",
    },
    layer_names={"vision": ("v.blk", SIGLIP_LAYER_NAMES)},
    transforms={"norm": add_one},
)


def _transposed(matrix: "Tensor") -> "Tensor":
    return matrix.T


def _transform(model: ModelView, tensor: GgufTensor) -> GgufTensor:
    """Return the matrix of the projector as floats [in, out], which llama.cpp transposes."""
    if tensor.source != "projector.out":
        return tensor
    reason = "llama.cpp transposes it, for which it has to be F32"
    return replace(
        tensor, shape=tensor.shape[::-1], type=GGMLQuantizationType.F32, transform=_transposed, reason=reason
    )


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", preprocessor.slice_resolution)
    writer.add_uint32("clip.vision.projection_dim", model.architecture.language.hidden_size)
    writer.add_uint32("clip.vision.projector.scale_factor", model.architecture.required_vision.spatial_merge_size)


SIGLIP_POOLED = VisionTower(
    projector_type="gemma3",
    names=NAMES,
    required_tokens=(IMAGE_START, IMAGE_END),
    add_metadata=_add_metadata,
    transform=_transform,
    resample=int(Image.Resampling.BILINEAR),
)
