"""Qwen2-VL: a vision tower of any resolution with rotary positions, a merger, and Qwen2 with M-RoPE."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from mcpmq.families.checked import Checked, Heads, LanguageConfig, Layers, Width, checked, text_keys
from mcpmq.families.family import Architecture, Family, LanguageShape, Pixels, Processor, TensorSpec, VisionShape
from mcpmq.families.tensors import decoder, layer_norm, matrix, renamed

NORM_EPSILON = 1e-6
# The native module's names begin otherwise than the checkpoint's.
NATIVE_PREFIXES = {"model.": "model.language_model.", "visual.": "model.visual."}
VISION_LAYER = {
    "norm1": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.o": "attn.proj",
    "norm2": "norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


class _Vision(Checked):
    depth: Layers = 32
    embed_dim: Width = 1280
    num_heads: Heads = 16
    mlp_ratio: PositiveInt = Field(default=4, le=16)
    patch_size: PositiveInt = Field(default=14, le=256)
    spatial_merge_size: PositiveInt = Field(default=2, le=8)
    temporal_patch_size: PositiveInt = Field(default=2, le=8)


class _Config(Checked):
    text: LanguageConfig
    vision_config: _Vision


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range.
    """
    sizes = checked(_Config, {**config, "text": text_keys(config)})
    return Architecture(language_shape(sizes.text, "qwen2vl"), _vision_shape(sizes.vision_config))


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
        rope_sections=config.rope.mrope_section,
        **{"attention_bias": True, **differences},
    )


def _vision_shape(config: _Vision) -> VisionShape:
    return VisionShape(
        kind="qwen2-vl",
        hidden=config.embed_dim,
        layers=config.depth,
        heads=config.num_heads,
        ffn=config.embed_dim * config.mlp_ratio,
        patch=config.patch_size,
        norm_epsilon=NORM_EPSILON,
        frames=config.temporal_patch_size,
        merge=config.spatial_merge_size,
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
    yield from layer_norm("projector.norm", "visual.merger.ln_q", shape.hidden)
    yield from matrix("projector.up", "visual.merger.mlp.0", (merged, merged))
    yield from matrix("projector.down", "visual.merger.mlp.2", (width, merged))


def _layer(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes = {
        "attention.qkv": (3 * shape.hidden, shape.hidden),
        "attention.o": (shape.hidden, shape.hidden),
        "mlp.up": (shape.ffn, shape.hidden),
        "mlp.down": (shape.hidden, shape.ffn),
    }
    for part, hub_part in VISION_LAYER.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        yield from (matrix(full, hub, sizes[part]) if part in sizes else layer_norm(full, hub, shape.hidden))


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.qwenvl_inputs import QwenVlProcessor

    return QwenVlProcessor.open(checkpoint)


def _pixels(folder: Path) -> Pixels:
    from mcpmq.families.qwenvl_inputs import Resizing

    return Resizing.open(folder)


QWEN2_VL = Family(
    name="qwen2-vl",
    published=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
    recognises=lambda config: config.get("model_type") == "qwen2_vl",
    architecture=_architecture,
    tensors=_tensors,
    processor=_processor,
    pixels=_pixels,
    native="mcpmq.families.transformers_native:qwen2_vl",
    caveats=(("gguf", "llama.cpp takes 0 for the epsilon of this model's norms, whatever the file says"),),
)
