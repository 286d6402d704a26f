"""MiniCPM-V 2.5, 2.6, 4.0, 4.5 and MiniCPM-o 2.6: SigLIP and a resampler before Llama, Qwen2, MiniCPM4 or Qwen3."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.families.checked import (
    Checked,
    Heads,
    HiddenWidth,
    LanguageConfig,
    Layers,
    Width,
    checked,
    refuse_keys,
    text_keys,
)
from mcpmq.families.family import Architecture, Family, LanguageShape, Pixels, Processor, TensorSpec, VisionShape
from mcpmq.families.folds import GATED_LANGUAGE, RESAMPLER, SIGLIP
from mcpmq.families.tensors import Growth, decoder, layer_norm, matrix

HEAD_WIDTH_OF_RESAMPLER = 128
VISION_LAYER = {
    "norm1": "layer_norm1",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}

# GELU of zero is zero, so zero rows above and zero columns below leave every sum as it was.
HIDDEN_WIDTH_OF_VISION: dict[str, Growth] = {"mlp.up": "rows", "mlp.down": "columns"}


class SiglipConfig(Checked):
    """`vision_config`."""

    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    intermediate_size: HiddenWidth
    patch_size: PositiveInt = Field(le=256)
    image_size: PositiveInt = Field(le=16384)
    layer_norm_eps: PositiveFloat = 1e-6


class _Config(LanguageConfig):
    hidden_size: Annotated[Width, Field(multiple_of=HEAD_WIDTH_OF_RESAMPLER)]
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_config: SiglipConfig


@dataclass(frozen=True, slots=True)
class _Differences:
    """What the members of the line differ in."""

    architecture: str
    attention_bias: bool = False
    qk_norm: bool = False
    permuted_rope: bool = False
    one_row: bool = False


def version_of(config: Mapping[str, Any]) -> str:
    """`2.6` of a raw config.json that has it as a number, as a text, or, being of 2.0 or 2.5, not at all."""
    version = config.get("version")
    if version is None:
        return "2.0" if (config.get("hidden_size"), config.get("query_num")) == (2304, 64) else "2.5"
    return f"{version}.0" if str(version).isdigit() else str(version)


def _recognises(version: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda config: config.get("model_type") == "minicpmv" and version_of(config) == version


def _architecture(name: str, differences: _Differences) -> Callable[[Mapping[str, Any]], Architecture]:
    def architecture(config: Mapping[str, Any]) -> Architecture:
        """Sizes from a raw config.json.

        Raises:
            CheckpointError: a size is missing, out of range, or asks for what the family does not have.
        """
        sizes = checked(_Config, text_keys(config))
        refuse_keys(config, name, "tie_word_embeddings", "drop_vision_last_layer")
        return Architecture(_language_shape(sizes, differences), _vision_shape(sizes, differences.one_row))

    return architecture


def _language_shape(config: _Config, differences: _Differences) -> LanguageShape:
    return LanguageShape(
        architecture=differences.architecture,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=config.head_width,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        rope_theta=config.frequency_base,
        rope_factors=config.rope.short_factor,
        rope_long_factors=config.rope.long_factor,
        norm_epsilon=config.rms_norm_eps,
        attention_bias=differences.attention_bias,
        qk_norm=differences.qk_norm,
        permuted_rope=differences.permuted_rope,
    )


def _vision_shape(config: _Config, one_row: bool) -> VisionShape:
    siglip = config.vision_config
    return VisionShape(
        kind="siglip-resampler",
        hidden=siglip.hidden_size,
        layers=siglip.num_hidden_layers,
        heads=siglip.num_attention_heads,
        ffn=siglip.intermediate_size,
        patch=siglip.patch_size,
        grid=siglip.image_size // siglip.patch_size,
        slice_side=config.image_size,
        queries=config.query_num,
        norm_epsilon=siglip.layer_norm_eps,
        one_row=one_row,
    )


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return (
        *siglip(architecture.sees, "vpm"),
        *_resampler(architecture),
        *decoder(architecture.language, "llm.model", head="llm.lm_head.weight"),
    )


def siglip(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """The vision tower."""
    patches = f"{hub_name}.embeddings.patch_embedding"
    yield TensorSpec("vision.patch_embedding", f"{patches}.weight", (shape.hidden, 3, shape.patch, shape.patch))
    yield TensorSpec("vision.patch_embedding.bias", f"{patches}.bias", (shape.hidden,))
    positions = f"{hub_name}.embeddings.position_embedding.weight"
    yield TensorSpec("vision.position_embedding", positions, (shape.grid**2, shape.hidden), "table")
    for layer in range(shape.layers):
        yield from _siglip_layer(shape, f"vision.layers.{layer}", f"{hub_name}.encoder.layers.{layer}")
        if layer == shape.merger_layer:
            merger = _merger(shape, f"{hub_name}.vit_merger")
            # What no image passes is handed on as it is.
            yield from merger if shape.merges_inside else (replace(spec, role="other") for spec in merger)
    yield from layer_norm("vision.post_norm", f"{hub_name}.post_layernorm", shape.hidden)


def _siglip_layer(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    sizes = {"mlp.up": (shape.ffn, shape.hidden), "mlp.down": (shape.hidden, shape.ffn)}
    for part, hub_part in VISION_LAYER.items():
        full, hub = f"{name}.{part}", f"{hub_name}.{hub_part}"
        if part.startswith("norm"):
            yield from layer_norm(full, hub, shape.hidden)
        else:
            size = sizes.get(part, (shape.hidden, shape.hidden))
            yield from matrix(full, hub, size, may_grow=HIDDEN_WIDTH_OF_VISION.get(part))


def _merger(shape: VisionShape, hub_name: str) -> Iterator[TensorSpec]:
    """Attention inside of squares of four patches, then a matrix that makes one of the four."""
    four = 4 * shape.hidden
    yield from layer_norm("vision.merger.norm1", f"{hub_name}.layer_norm1", shape.hidden)
    for part in ("q", "k", "v", "o"):
        hub = f"{hub_name}.{VISION_LAYER[f'attention.{part}']}"
        yield from matrix(f"vision.merger.attention.{part}", hub, (shape.hidden, shape.hidden))
    yield from layer_norm("vision.merger.norm2", f"{hub_name}.pre_norm", four)
    yield from matrix("vision.merger.up", f"{hub_name}.linear_1", (4 * shape.ffn, four))
    yield from matrix("vision.merger.down", f"{hub_name}.linear_2", (shape.hidden, 4 * shape.ffn))


def _resampler(architecture: Architecture) -> Iterator[TensorSpec]:
    width, shape = architecture.language.hidden, architecture.sees
    yield TensorSpec("projector.query", "resampler.query", (shape.queries, width))
    yield from matrix("projector.kv", "resampler.kv_proj", (width, shape.hidden), bias=False)
    for norm in ("q", "kv", "post"):
        yield from layer_norm(f"projector.norm_{norm}", f"resampler.ln_{norm}", width)
    yield TensorSpec("projector.attention.qkv", "resampler.attn.in_proj_weight", (3 * width, width), "matrix")
    yield TensorSpec("projector.attention.qkv.bias", "resampler.attn.in_proj_bias", (3 * width,))
    yield from matrix("projector.attention.o", "resampler.attn.out_proj", (width, width))
    yield TensorSpec("projector.out", "resampler.proj", (width, width), "matrix", transposed=True)


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import MiniCpmVProcessor

    return MiniCpmVProcessor.open(checkpoint)


def _processor_of_2_5(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import Layout, MiniCpmVProcessor

    return MiniCpmVProcessor.open(checkpoint, Layout("<|eot_id|>", numbered=False, slices_as_images=True))


def _pixels(folder: Path) -> Pixels:
    from mcpmq.families.slicing import Slicing

    return Slicing.open(folder)


def _family(
    version: str,
    differences: _Differences,
    *published: str,
    llama_cpp: int,
    processor: Callable[[Path], Processor] = _processor,
    caveats: tuple[tuple[str, str], ...] = (),
) -> Family:
    name = f"minicpm-v-{version}"
    return Family(
        name=name,
        published=published,
        recognises=_recognises(version),
        architecture=_architecture(name, differences),
        tensors=_tensors,
        processor=processor,
        pixels=_pixels,
        native="mcpmq.families.minicpmv_native:build",
        llama_cpp_version=llama_cpp,
        caveats=caveats,
        fed_by=(("resampler.proj", "resampler.ln_post"),),
        folds=(*GATED_LANGUAGE, *SIGLIP, *RESAMPLER),
    )


MINICPM_V_2_5 = _family(
    "2.5",
    _Differences("llama", permuted_rope=True, one_row=True),
    "openbmb/MiniCPM-Llama3-V-2_5",
    llama_cpp=2,
    processor=_processor_of_2_5,
    caveats=(("gguf", "llama.cpp places the patches of a slice in two dimensions, the original counts them in one"),),
)
MINICPM_V_2_6 = _family("2.6", _Differences("qwen2", attention_bias=True), "openbmb/MiniCPM-V-2_6", llama_cpp=3)
MINICPM_V_4_0 = _family("4.0", _Differences("llama", permuted_rope=True), "openbmb/MiniCPM-V-4", llama_cpp=5)
MINICPM_V_4_5 = _family("4.5", _Differences("qwen3", qk_norm=True), "openbmb/MiniCPM-V-4_5", llama_cpp=6)
MINICPM_O_2_6 = replace(
    MINICPM_V_2_6,
    name="minicpm-o-2.6",
    published=("openbmb/MiniCPM-o-2_6",),
    recognises=lambda config: config.get("model_type") == "minicpmo" and version_of(config) == "2.6",
    llama_cpp_version=4,
    passed_through=(("audio", "apm"), ("audio", "audio_projection_layer"), ("speech", "tts")),
    caveats=tuple((name, "images and text only: what hears and speaks is left out") for name in ("gguf", "onnx")),
)
