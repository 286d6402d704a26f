"""MiniCPM-V 4.6 and 4.7: SigLIP with two mergers instead of a resampler, and Qwen3.5 with linear attention."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.checked import Checked, Heads, LanguageConfig, Rope, Width, checked, refuse_keys, text_keys
from mcpmq.families.family import (
    Architecture,
    Family,
    LanguageShape,
    LinearAttention,
    Pixels,
    Processor,
    TensorSpec,
    VisionShape,
)
from mcpmq.families.folds import HYBRID_LANGUAGE, SIGLIP, SIGLIP_MERGERS
from mcpmq.families.siglip import Siglip, siglip
from mcpmq.families.tensors import decoder, layer_norm, matrix

NAME = "minicpm-v-4.6"
SECTIONS = (11, 11, 10)  # frequencies turned by time, row and column, where a configuration of 4.7 does not say it
MERGE = {"16x": 4, "4x": 2}  # side of the square of patches that becomes one token


class _Rope(Rope):
    partial_rotary_factor: PositiveFloat = Field(default=0.25, le=1)


class _Language(LanguageConfig):
    rope: _Rope = _Rope()
    head_dim: PositiveInt = Field(default=256, le=4096)
    layer_types: tuple[Literal["linear_attention", "full_attention"], ...] = ()
    full_attention_interval: PositiveInt = 4
    linear_num_key_heads: Heads = 16
    linear_num_value_heads: Heads = 32
    linear_key_head_dim: Width = 128
    linear_value_head_dim: Width = 128
    linear_conv_kernel_dim: PositiveInt = Field(default=4, le=64)

    @property
    def linear_layers(self) -> tuple[int, ...]:
        every = self.full_attention_interval
        types = self.layer_types or tuple(
            "linear_attention" if (layer + 1) % every else "full_attention" for layer in range(self.num_hidden_layers)
        )
        return tuple(layer for layer, kind in enumerate(types) if kind == "linear_attention")


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
    return Architecture(_language_shape(checked(_Language, text_keys(config))), _vision_shape(checked(_Config, config)))


def _architecture_of_4_7(config: Mapping[str, Any]) -> Architecture:
    """The same, with positions on a canvas."""
    sections = checked(_Language, text_keys(config)).rope.mrope_section or SECTIONS
    known = _architecture(config)
    return replace(known, language=replace(known.language, rope_sections=sections, rope_interleaved=True))


def _language_shape(config: _Language) -> LanguageShape:
    if config.layer_types and len(config.layer_types) != config.num_hidden_layers:
        raise CheckpointError(
            f"`config.json` has {config.num_hidden_layers} layers and the types of {len(config.layer_types)}"
        )
    turned = int(config.head_width * config.rope.partial_rotary_factor)
    return LanguageShape(
        architecture="qwen35",
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=config.head_width,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        rope_theta=config.frequency_base,
        norm_epsilon=config.rms_norm_eps,
        attention_bias=False,
        qk_norm=True,
        tied_head=config.tie_word_embeddings,
        linear=LinearAttention(
            config.linear_layers,
            config.linear_num_key_heads,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
            config.linear_conv_kernel_dim,
        ),
        gated_attention=True,
        centred_norms=True,
        rope_width=turned,
    )


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
        *_projector(architecture),
        *decoder(architecture.language, "model.language_model"),
    )


def _projector(architecture: Architecture) -> Iterator[TensorSpec]:
    four, hub = 4 * architecture.sees.hidden, "model.merger.mlp.0"
    yield from layer_norm("projector.norm", f"{hub}.pre_norm", four)
    yield from matrix("projector.up", f"{hub}.linear_1", (four, four))
    yield from matrix("projector.down", f"{hub}.linear_2", (architecture.language.hidden, four))


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import Layout, MiniCpmVProcessor
    from mcpmq.families.slicing import MergedSlicing

    layout = Layout(placeholder="<|image_pad|>", slicing=MergedSlicing, extra="none")
    return MiniCpmVProcessor.open(checkpoint, layout)


def _pixels(folder: Path) -> Pixels:
    from mcpmq.families.slicing import MergedSlicing

    return MergedSlicing.open(folder)


MINICPM_V_4_6 = Family(
    name=NAME,
    published=("openbmb/MiniCPM-V-4.6",),
    recognises=lambda config: config.get("model_type") == "minicpmv4_6",
    architecture=_architecture,
    tensors=_tensors,
    processor=_processor,
    pixels=_pixels,
    native="mcpmq.families.transformers_native:minicpmv4_6",
    passed_through=(("drafts", "mtp"),),
    folds=(*HYBRID_LANGUAGE, *SIGLIP, *SIGLIP_MERGERS),
)


def _processor_of_4_7(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import Layout, MiniCpmVProcessor
    from mcpmq.families.slicing import CanvasSlicing

    layout = Layout(placeholder="<|image_pad|>", slicing=CanvasSlicing, extra="types")
    return MiniCpmVProcessor.open(checkpoint, layout)


def _pixels_of_4_7(folder: Path) -> Pixels:
    from mcpmq.families.slicing import CanvasSlicing

    return CanvasSlicing.open(folder)


MINICPM_V_4_7 = replace(
    MINICPM_V_4_6,
    name="minicpm-v-4.7",
    published=("openbmb/MiniCPM-V-4.7-1B",),
    recognises=lambda config: config.get("model_type") == "minicpmv4_7",
    architecture=_architecture_of_4_7,
    processor=_processor_of_4_7,
    pixels=_pixels_of_4_7,
    native="mcpmq.families.transformers_native:minicpmv4_7",
    refusals=(
        (
            "gguf",
            "the pinned llama.cpp knows no canvas of slices: under another name it runs, and reads images wrongly",
        ),
    ),
)
