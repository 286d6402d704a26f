"""MiniCPM-V 4.6: SigLIP with two mergers instead of a resampler, and Qwen3.5 with linear attention."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import NonNegativeInt

from mcpmq.families.config_schema import Checked, checked, refuse_keys
from mcpmq.families.family import Architecture, Family, TensorSpec, VisionShape
from mcpmq.families.hybrid_language import HybridConfig
from mcpmq.families.language import text_keys
from mcpmq.families.prompt_format import Layout
from mcpmq.families.siglip import Siglip, siglip
from mcpmq.families.smoothing_mappings import HYBRID_LANGUAGE, SIGLIP, SIGLIP_MERGERS
from mcpmq.families.tensors import decoder, layer_norm, matrix

NAME = "minicpm-v-4.6"
MERGE = {"16x": 4, "4x": 2}  # side of the square of patches that becomes one token


class _Config(Checked):
    vision_config: Siglip
    insert_layer_id: NonNegativeInt = 6
    downsample_mode: Literal["16x", "4x"] = "16x"
    merge_kernel_size: tuple[Literal[2], Literal[2]] = (2, 2)
    merger_times: Literal[1] = 1


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing, out of range, or asks for what 4.6 does not have.
    """
    refuse_keys(config, NAME, "drop_vision_last_layer")
    language = checked(HybridConfig, text_keys(config)).shape("qwen35")
    return Architecture(language, _vision_shape(checked(_Config, config)))


def _vision_shape(config: _Config) -> VisionShape:
    return config.vision_config.shape(
        "siglip-merger",
        merge=MERGE[config.downsample_mode],
        merger_layer=config.insert_layer_id,
        merges_inside=config.downsample_mode == "16x",
    )


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (
        *siglip(architecture.sees, "model.vision_tower"),
        *_merger(architecture, "model.merger.mlp.0"),
        *decoder(architecture.language, "model.language_model"),
    )


def _merger(architecture: Architecture, hub_name: str) -> Iterator[TensorSpec]:
    four = 4 * architecture.sees.hidden
    yield from layer_norm("projector.norm", f"{hub_name}.pre_norm", four)
    yield from matrix("projector.up", f"{hub_name}.linear_1", (four, four))
    yield from matrix("projector.down", f"{hub_name}.linear_2", (architecture.language.hidden, four))


MINICPM_V_4_6 = Family(
    name=NAME,
    published=("openbmb/MiniCPM-V-4.6",),
    recognises=lambda config: config.get("model_type") == "minicpmv4_6",
    architecture=_architecture,
    tensors=_tensors,
    inputs="mcpmq.families.minicpmv_inputs",
    layout=Layout(placeholder="<|image_pad|>", slicing="merged", extra="none"),
    native="mcpmq.families.modeling_transformers:minicpmv4_6",
    passed_through=(("drafts", "mtp"),),
    folds=(*HYBRID_LANGUAGE, *SIGLIP, *SIGLIP_MERGERS),
)
