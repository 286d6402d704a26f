"""Qwen3-VL: features of several vision layers, interleaved M-RoPE, and Qwen3."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from mcpmq.families.checked import HiddenWidth, LanguageConfig, Width, checked, text_keys
from mcpmq.families.family import Architecture, TensorSpec, VisionShape
from mcpmq.families.folds import GATED_LANGUAGE, QWEN_VISION
from mcpmq.families.qwen2vl import ATTENTION, HIDDEN_WIDTH, QWEN2_VL, Patches, language_shape
from mcpmq.families.tensors import decoder, layer_norm, matrix

SECTIONS = (24, 20, 20)  # frequencies turned by time, row and column, where a configuration does not say it
LAYER = {"norm1": "norm1", **ATTENTION, "norm2": "norm2", "mlp.up": "mlp.linear_fc1", "mlp.down": "mlp.linear_fc2"}


class _Language(LanguageConfig):
    default_theta: ClassVar[float] = 5e5
    head_dim: PositiveInt = Field(default=128, le=4096)


class _Vision(Patches):
    hidden_size: Width = 1152
    intermediate_size: HiddenWidth = 4304
    depth: PositiveInt = Field(default=27, le=1000)
    patch_size: PositiveInt = Field(default=16, le=256)
    num_position_embeddings: PositiveInt = Field(default=2304, le=1 << 20)
    deepstack_visual_indexes: tuple[NonNegativeInt, ...] = (8, 16, 24)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    vision, text = checked(_Vision, config.get("vision_config") or {}), checked(_Language, text_keys(config))
    differences = {"attention_bias": False, "qk_norm": True, "rope_interleaved": True}
    sections = text.rope.mrope_section or SECTIONS
    language = language_shape(text, "qwen3vl", rope_sections=sections, **differences)
    more = {"grid": isqrt(vision.num_position_embeddings), "deep_layers": vision.deepstack_visual_indexes}
    return Architecture(language, vision.shape("qwen3-vl", vision.hidden_size, vision.intermediate_size, **more))


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (*_vision(architecture), *decoder(architecture.language, "model.language_model"))


def _vision(architecture: Architecture) -> Iterator[TensorSpec]:
    shape, hub = architecture.sees, "model.visual"
    patch = (shape.hidden, 3, shape.frames, shape.patch, shape.patch)
    yield TensorSpec("vision.patch_embedding", f"{hub}.patch_embed.proj.weight", patch)
    yield TensorSpec("vision.patch_embedding.bias", f"{hub}.patch_embed.proj.bias", (shape.hidden,))
    # Mixed from four neighbours, in which rounding would show: it stays as it is.
    yield TensorSpec("vision.position_embedding", f"{hub}.pos_embed.weight", (shape.grid**2, shape.hidden))
    for layer in range(shape.layers):
        yield from _layer(shape, f"vision.layers.{layer}", f"{hub}.blocks.{layer}")
        if layer in shape.deep_layers:
            number = shape.deep_layers.index(layer)
            yield from _merger(architecture, f"projector.layers.{layer}", f"{hub}.deepstack_merger_list.{number}", 4)
    yield from _merger(architecture, "projector", f"{hub}.merger", 1)


def _layer(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes = {
        "attention.qkv": (3 * shape.hidden, shape.hidden),
        "attention.o": (shape.hidden, shape.hidden),
        "mlp.up": (shape.ffn, shape.hidden),
        "mlp.down": (shape.hidden, shape.ffn),
    }
    for part, hub_part in LAYER.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part in sizes:
            yield from matrix(full, hub, sizes[part], may_grow=HIDDEN_WIDTH.get(part))
        else:
            yield from layer_norm(full, hub, shape.hidden)


def _merger(architecture: Architecture, name: str, hub_name: str, normed: int) -> Iterator[TensorSpec]:
    """Squares of four patches become tokens; `normed` of them are normed together."""
    hidden = architecture.sees.hidden
    yield from layer_norm(f"{name}.norm", f"{hub_name}.norm", normed * hidden)
    yield from matrix(f"{name}.up", f"{hub_name}.linear_fc1", (4 * hidden, 4 * hidden))
    yield from matrix(f"{name}.down", f"{hub_name}.linear_fc2", (architecture.language.hidden, 4 * hidden))


QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3-vl",
    published=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    recognises=lambda config: config.get("model_type") == "qwen3_vl",
    architecture=_architecture,
    tensors=_tensors,
    native="mcpmq.families.transformers_native:qwen3_vl",
    caveats=(),
    folds=(*GATED_LANGUAGE, *QWEN_VISION),
)
