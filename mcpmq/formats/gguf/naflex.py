"""SigLIP2 on slices of any aspect ratio with the projector of LFM2-VL in an mmproj file."""

from dataclasses import replace
from typing import TYPE_CHECKING

from gguf import GGUFWriter
from PIL import Image

from mcpmq.errors import FormatError
from mcpmq.families.lfm_inputs import IMAGE_END, IMAGE_START, THUMBNAIL, LfmTiling
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
        "vision.patch_embedding": "v.patch_embd",
        "vision.position_embedding": "v.position_embd",
        "vision.post_norm": "v.post_ln",
        "projector.norm": "mm.input_norm",
        "projector.up": "mm.1",
        "projector.down": "mm.2",
    },
    layer_names={"vision": ("v.blk", SIGLIP_LAYER_NAMES)},
)
# Constants of llama.cpp for this projector.
LIMITS = {"min_image_tokens": 64, "max_image_tokens": 256, "tile_size": 512, "min_tiles": 2, "max_tiles": 10}
LIMITS |= {"max_pixels_tolerance": 2, "use_thumbnail": True, "do_image_splitting": True}


def _channels_first(values: "Tensor") -> "Tensor":
    side = round((values.shape[1] / 3) ** 0.5)
    return values.reshape(len(values), side, side, 3).permute(0, 3, 1, 2)


def _transform(model: ModelView, tensor: GgufTensor) -> GgufTensor:
    """Return the matrix of the patch embedding as the kernel of a convolution."""
    if tensor.source != "vision.patch_embedding":
        return tensor
    side = model.architecture.required_vision.patch_size
    shape = (tensor.shape[0], 3, side, side)
    return replace(tensor, shape=shape, transform=_channels_first, reason="llama.cpp embeds patches by a convolution")


def _add_metadata(writer: GGUFWriter, model: ModelView, preprocessor: PreprocessorConfig) -> None:
    shape = model.architecture.required_vision
    assert isinstance(preprocessor, LfmTiling)
    for key, constant in LIMITS.items():
        if (given := getattr(preprocessor, key)) != constant:
            raise FormatError(
                f"`{key}` is {given}, llama.cpp has the constant {constant}",
                "export to another format, for example `onnx`",
            )
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", shape.position_grid_size * shape.patch_size)
    writer.add_uint32("clip.vision.projection_dim", model.architecture.language.hidden_size)
    writer.add_uint32("clip.vision.projector.scale_factor", shape.spatial_merge_size)


SIGLIP_NAFLEX = VisionTower(
    projector_type="lfm2",
    names=NAMES,
    required_tokens=(IMAGE_START, IMAGE_END, THUMBNAIL, "<|img_row_1_col_1|>"),
    add_metadata=_add_metadata,
    transform=_transform,
    resample=int(Image.Resampling.BILINEAR),
)
