"""InternViT with the projector of InternVL in an mmproj file."""

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf import GGUFWriter

from mcpmq.families.internvl_inputs import IMAGE_END, IMAGE_START, InternVlTiling
from mcpmq.families.preprocessor import PreprocessorConfig
from mcpmq.formats.gguf.names import TensorNames
from mcpmq.formats.gguf.resampler import SIGLIP_LAYER_NAMES
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.gguf.vision_tower import VisionTower
from mcpmq.formats.model_view import ModelView

if TYPE_CHECKING:  # a forecast needs no torch
    from torch import Tensor

NAMES = TensorNames(
    global_names={
        "vision.class_embedding": "v.class_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.patch_embedding": "v.patch_embd",
        "projector.norm": "mm.model.mlp.0",
        "projector.up": "mm.model.mlp.1",
        "projector.down": "mm.model.mlp.3",
    },
    layer_names={"vision": ("v.blk", {**SIGLIP_LAYER_NAMES, "attention.scale": "ls1", "mlp.scale": "ls2"})},
)


def _flat(values: "Tensor") -> "Tensor":
    return values.flatten()


def _class_last(values: "Tensor") -> "Tensor":
    """Return the positions of the patches, then that of the class embedding: [positions, hidden]."""
    return values[0].roll(-1, 0)


def _transform(model: ModelView, tensor: GgufTensor) -> GgufTensor:
    """Return the class embedding as a vector, and its position last: llama.cpp appends it to the patches."""
    shape = model.architecture.required_vision
    if tensor.source == "vision.class_embedding":
        return replace(tensor, shape=(shape.hidden_size,), transform=_flat)
    if tensor.source != "vision.position_embedding":
        return tensor
    size = shape.position_grid_size**2 + 1, shape.hidden_size
    reason = "llama.cpp appends the class embedding to the patches"
    return replace(tensor, shape=size, transform=_class_last, reason=reason)


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    assert isinstance(preprocessor, InternVlTiling)
    most = preprocessor.max_patches if preprocessor.crop_to_patches else 1
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", preprocessor.slice_resolution)
    writer.add_uint32("clip.vision.projection_dim", model.architecture.language.hidden_size)
    writer.add_uint32("clip.vision.projector.scale_factor", model.architecture.required_vision.spatial_merge_size)
    writer.add_uint32("clip.vision.preproc_min_tiles", min(preprocessor.min_patches, most))
    writer.add_uint32("clip.vision.preproc_max_tiles", most)


INTERNVIT = VisionTower(
    projector_type="internvl",
    names=NAMES,
    required_tokens=(IMAGE_START, IMAGE_END),
    add_metadata=_add_metadata,
    transform=_transform,
)
