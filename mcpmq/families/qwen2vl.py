"""Qwen2-VL and Qwen2.5-VL: a vision tower of any resolution with rotary positions, a merger, and Qwen2 with M-RoPE."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from mcpmq.families.checked import Checked, Heads, HiddenWidth, LanguageConfig, Layers, Width, checked, text_keys
from mcpmq.families.family import (
    Architecture,
    Family,
    Fold,
    LanguageShape,
    Pixels,
    Processor,
    TensorSpec,
    VisionKind,
    VisionShape,
)
from mcpmq.families.folds import GATED_LANGUAGE, GATED_QWEN_VISION, QWEN_VISION
from mcpmq.families.tensors import Growth, decoder, layer_norm, matrix, renamed

NORM_EPSILON = 1e-6
SECTIONS = (16, 24, 24)  # frequencies turned by time, row and column, where a configuration does not say it
# The native module's names begin otherwise than the checkpoint's.
NATIVE_PREFIXES = {"model.": "model.language_model.", "visual.": "model.visual."}
ATTENTION = {"attention.qkv": "attn.qkv", "attention.o": "attn.proj"}
LAYER_OF_2 = {"norm1": "norm1", **ATTENTION, "norm2": "norm2", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
GATED = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
LAYER_OF_2_5 = {"norm1": "norm1", **ATTENTION, "norm2": "norm2", **GATED}

# Quick GELU of zero is zero, and so is SiLU: zero rows above and zero columns below leave every sum as it was.
HIDDEN_WIDTH: dict[str, Growth] = {"mlp.gate": "rows", "mlp.up": "rows", "mlp.down": "columns"}


class _Language(LanguageConfig):
    default_theta: ClassVar[float] = 1e6
    rms_norm_eps: PositiveFloat = 1e-5


class Patches(Checked):
    """What the towers of all Qwen-VL have."""

    depth: Layers = 32
    num_heads: Heads = 16
    patch_size: PositiveInt = Field(default=14, le=256)
    spatial_merge_size: PositiveInt = Field(default=2, le=8)
    temporal_patch_size: PositiveInt = Field(default=2, le=8)

    def shape(self, kind: VisionKind, hidden: int, ffn: int, **more: Any) -> VisionShape:
        """With the sizes that are named otherwise in every one of them."""
        return VisionShape(
            kind=kind,
            hidden=hidden,
            layers=self.depth,
            heads=self.num_heads,
            ffn=ffn,
            patch=self.patch_size,
            norm_epsilon=NORM_EPSILON,
            frames=self.temporal_patch_size,
            merge=self.spatial_merge_size,
            **more,
        )


class _VisionOf2(Patches):
    embed_dim: Width = 1280
    mlp_ratio: PositiveInt = Field(default=4, le=16)


class _VisionOf2_5(Patches):  # noqa: N801 - a version has a dot
    hidden_size: Width = 1280
    intermediate_size: HiddenWidth = 3420
    window_size: PositiveInt = Field(default=112, le=16384)
    fullatt_block_indexes: tuple[NonNegativeInt, ...] = (7, 15, 23, 31)


def _architecture_of_2(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    vision = checked(_VisionOf2, config.get("vision_config") or {})
    language = language_shape(checked(_Language, text_keys(config)), "qwen2vl")
    return Architecture(language, vision.shape("qwen2-vl", vision.embed_dim, vision.embed_dim * vision.mlp_ratio))


def _architecture_of_2_5(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    vision = checked(_VisionOf2_5, config.get("vision_config") or {})
    language = language_shape(checked(_Language, text_keys(config)), "qwen2vl")
    window = {"window": vision.window_size // vision.patch_size, "full_attention": vision.fullatt_block_indexes}
    return Architecture(language, vision.shape("qwen2.5-vl", vision.hidden_size, vision.intermediate_size, **window))


def language_shape(config: LanguageConfig, architecture: str, **differences: Any) -> LanguageShape:
    """Qwen2 with M-RoPE, and what a later one has differently."""
    return LanguageShape(
        architecture=architecture,
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
        tied_head=config.tie_word_embeddings,
        **{"attention_bias": True, "rope_sections": config.rope.mrope_section or SECTIONS, **differences},
    )


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    specs = (*_vision(architecture), *decoder(architecture.language, "model"))
    return renamed(specs, NATIVE_PREFIXES)


def _vision(architecture: Architecture) -> Iterator[TensorSpec]:
    shape, width = architecture.sees, architecture.language.hidden
    patch = (shape.hidden, 3, shape.frames, shape.patch, shape.patch)
    yield TensorSpec("vision.patch_embedding", "visual.patch_embed.proj.weight", patch)
    for layer in range(shape.layers):
        yield from _layer(shape, f"vision.layers.{layer}", f"visual.blocks.{layer}")
    merged = shape.hidden * shape.merge**2
    yield from _norm(shape, "projector.norm", "visual.merger.ln_q")
    yield from matrix("projector.up", "visual.merger.mlp.0", (merged, merged))
    yield from matrix("projector.down", "visual.merger.mlp.2", (width, merged))


def _layer(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes = {
        "attention.qkv": (3 * shape.hidden, shape.hidden),
        "attention.o": (shape.hidden, shape.hidden),
        "mlp.gate": (shape.ffn, shape.hidden),
        "mlp.up": (shape.ffn, shape.hidden),
        "mlp.down": (shape.hidden, shape.ffn),
    }
    for part, hub_part in (LAYER_OF_2 if shape.kind == "qwen2-vl" else LAYER_OF_2_5).items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part in sizes:
            yield from matrix(full, hub, sizes[part], may_grow=HIDDEN_WIDTH.get(part))
        else:
            yield from _norm(shape, full, hub)


def _norm(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    """2 norms layers with a bias, 2.5 by the root of the mean square."""
    bias = list(layer_norm(name, hub_name, shape.hidden))
    yield from bias if shape.kind == "qwen2-vl" else bias[:1]


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.qwenvl_inputs import QwenVlProcessor

    return QwenVlProcessor.open(checkpoint)


def _pixels(folder: Path) -> Pixels:
    from mcpmq.families.qwenvl_inputs import Resizing

    return Resizing.open(folder)


def _family(
    version: str, architecture: Callable[[Mapping[str, Any]], Architecture], vision: tuple[Fold, ...], *sizes: str
) -> Family:
    model_type = f"qwen{version.replace('.', '_')}_vl"
    return Family(
        name=f"qwen{version}-vl",
        published=tuple(f"Qwen/Qwen{version}-VL-{size}-Instruct" for size in sizes),
        recognises=lambda config: config.get("model_type") == model_type,
        architecture=architecture,
        tensors=_tensors,
        processor=_processor,
        pixels=_pixels,
        native=f"mcpmq.families.transformers_native:{model_type}",
        images_have_rows=True,
        caveats=(("gguf", "llama.cpp takes 0 for the epsilon of this model's norms, whatever the file says"),),
        folds=(*GATED_LANGUAGE, *vision),
    )


QWEN2_VL = _family("2", _architecture_of_2, QWEN_VISION, "2B", "7B")
QWEN2_5_VL = _family("2.5", _architecture_of_2_5, GATED_QWEN_VISION, "3B", "7B")
