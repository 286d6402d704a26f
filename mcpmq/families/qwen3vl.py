"""Qwen3-VL: features of several vision layers, interleaved M-RoPE, and Qwen3."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from mcpmq.families.config_schema import HiddenWidth, Width, checked
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.families.language import LanguageConfig, text_keys
from mcpmq.families.qwen2vl import QWEN2_VL
from mcpmq.families.qwen_vision import Patches, patch_embedding, qwen_layer, qwen_merger
from mcpmq.families.smoothing_mappings import GATED_LANGUAGE, QWEN_VISION
from mcpmq.families.tensors import decoder

SECTIONS = (24, 20, 20)  # frequencies turned by time, row and column, where a configuration does not say it
FFN = {"mlp.up": "mlp.linear_fc1", "mlp.down": "mlp.linear_fc2"}
MERGER = ("norm", "linear_fc1", "linear_fc2")


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
    sizes, text = checked(_Vision, config.get("vision_config") or {}), checked(_Language, text_keys(config))
    sections = text.rope.mrope_section or SECTIONS
    language = text.shape("qwen3vl", qk_norm=True, rope_sections=sections, rope_interleaved=True)
    deep = {"grid": isqrt(sizes.num_position_embeddings), "deep_layers": sizes.deepstack_visual_indexes}
    return Architecture(language, sizes.shape("qwen3-vl", sizes.hidden_size, sizes.intermediate_size, **deep))


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (
        *_tower(architecture, "model.visual"),
        *qwen_merger(architecture, MERGER, "projector", "model.visual.merger"),
        *decoder(architecture.language, "model.language_model"),
    )


def _tower(architecture: Architecture, hub: str) -> Iterator[TensorSpec]:
    """Deep layers have a merger each, which norms whole squares of patches."""
    shape = architecture.sees
    yield patch_embedding(shape, hub)
    yield TensorSpec("vision.patch_embedding.bias", f"{hub}.patch_embed.proj.bias", (shape.hidden,))
    # Mixed from four neighbours, in which rounding would show: it stays as it is.
    yield TensorSpec("vision.position_embedding", f"{hub}.pos_embed.weight", (shape.grid**2, shape.hidden))
    for layer in range(shape.layers):
        yield from qwen_layer(shape, FFN, layer, hub)
        if layer in shape.deep_layers:
            name = f"{hub}.deepstack_merger_list.{shape.deep_layers.index(layer)}"
            yield from qwen_merger(architecture, MERGER, f"projector.layers.{layer}", name, normed=shape.merge**2)


QWEN3_VL = replace(
    QWEN2_VL,
    name="qwen3-vl",
    published=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    recognises=lambda config: config.get("model_type") == "qwen3_vl",
    architecture=_architecture,
    tensors=_tensors,
    native="mcpmq.families.modeling_transformers:qwen3_vl",
    caveats=(),
    folds=(*GATED_LANGUAGE, *QWEN_VISION),
)
