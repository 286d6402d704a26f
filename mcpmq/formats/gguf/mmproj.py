"""Metadata of the mmproj file: encoders and their projectors."""

from gguf import GGUFWriter

from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.families.family import Architecture, VisionKind
from mcpmq.families.preprocessor import PreprocessorConfig, image_settings
from mcpmq.formats.gguf import (
    glma,
    internvit,
    merger,
    naflex,
    pooled,
    qwen_omni,
    qwenvl,
    resampler,
    resampler_2_0,
    tiles,
)
from mcpmq.formats.gguf.vision_tower import VisionTower
from mcpmq.formats.model_view import ModelView

TOWERS: dict[VisionKind, VisionTower] = {
    "siglip-resampler": resampler.SIGLIP_RESAMPLER,
    "timm-resampler": resampler_2_0.TIMM_RESAMPLER,
    "siglip-merger": merger.SIGLIP_MERGER,
    "siglip-tiles": tiles.SIGLIP_TILES,
    "siglip-pooled": pooled.SIGLIP_POOLED,
    "siglip-naflex": naflex.SIGLIP_NAFLEX,
    "internvit": internvit.INTERNVIT,
    "qwen2-vl": qwenvl.QWEN2_VL,
    "qwen2.5-vl": qwenvl.QWEN2_5_VL,
    "qwen2.5-omni": qwen_omni.QWEN2_5_OMNI,
    "qwen3-vl": qwenvl.QWEN3_VL,
}


def largest_tower(architecture: Architecture) -> VisionTower | None:
    """Return the description with all encoders that a file can have; None for a text-only model."""
    if architecture.audio and architecture.audio.kind == "minicpm-o":
        return glma.MINICPM_O
    return TOWERS[architecture.vision.kind] if architecture.vision else None


def tower_of(model: ModelView) -> VisionTower:
    """Return the description of a model's encoders and projectors."""
    if model.artifact.manifest.recipe.get("gguf_audio") == glma.PROJECTOR:
        return glma.MINICPM_O
    return TOWERS[model.architecture.required_vision.kind]


def open_preprocessor(model: ModelView) -> PreprocessorConfig:
    """Return the settings of the image processor.

    Raises:
        CheckpointError: no file has them, or they are invalid.
        FormatError: llama.cpp resizes images with another filter.
    """
    settings = image_settings(family_named(model.artifact.manifest.family).open_vision_inputs(model.path))
    if settings.resample != (used := tower_of(model).resample):
        raise FormatError(
            f"images are resized with the filter {settings.resample} of Pillow (`resample`), llama.cpp uses {used}",
            "export to another format: `onnx` supports any filter",
        )
    return settings


def add_metadata(writer: GGUFWriter, model: ModelView, intermediate_size: int) -> None:
    """Write the sizes of the vision encoder and the projector; `intermediate_size` is the padded one.

    Raises:
        FormatError: llama.cpp would compute a different function.
    """
    shape, tower = model.architecture.required_vision, tower_of(model)
    preprocessor = open_preprocessor(model)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string(tower.projector_key, tower.projector_type)
    tower.add_metadata(writer, model, preprocessor)
    writer.add_uint32("clip.vision.patch_size", shape.patch_size)
    writer.add_uint32("clip.vision.embedding_length", shape.hidden_size)
    writer.add_uint32("clip.vision.feed_forward_length", intermediate_size)
    writer.add_uint32("clip.vision.block_count", shape.num_layers)
    writer.add_uint32("clip.vision.attention.head_count", shape.num_heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", shape.norm_epsilon)
    means, stds = preprocessor.normalization
    writer.add_array("clip.vision.image_mean", list(means))
    writer.add_array("clip.vision.image_std", list(stds))
    if intermediate_size != shape.intermediate_size:
        writer.add_uint32("mcpmq.vision.feed_forward_length", shape.intermediate_size)  # before padding
