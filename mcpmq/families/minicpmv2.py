"""MiniCPM-V 2.0: SigLIP as the timm library has it and a resampler that places its queries, before MiniCPM."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.families.checked import LanguageConfig, Width, checked, refuse_keys, text_keys
from mcpmq.families.family import Architecture, Family, LanguageShape, Pixels, Processor, TensorSpec, VisionShape
from mcpmq.families.folds import GATED_LANGUAGE, QWEN_VISION, RESAMPLER
from mcpmq.families.minicpmv import HEAD_WIDTH_OF_RESAMPLER, resampler, version_of
from mcpmq.families.siglip import Siglip
from mcpmq.families.tensors import decoder, layer_norm, matrix

NAME = "minicpm-v-2.0"
# Published code had it, no file of the checkpoint.
TEMPLATE = (
    "<s>{% for message in messages %}{{ '<用户>' if message['role'] == 'user' else '<AI>' }}{{ message['content'] }}"
    "{% endfor %}<AI>"
)
SO400M = Siglip(
    hidden_size=1152,
    num_hidden_layers=27,
    num_attention_heads=16,
    intermediate_size=4304,
    patch_size=14,
    image_size=384,
)


class _Config(LanguageConfig):
    hidden_size: Annotated[Width, Field(multiple_of=HEAD_WIDTH_OF_RESAMPLER)]
    max_position_embeddings: PositiveInt = 2048
    scale_emb: PositiveFloat = 1
    scale_depth: PositiveFloat = 1
    dim_model_base: PositiveFloat = 1
    query_num: PositiveInt = Field(default=64, le=4096)
    image_size: PositiveInt = Field(default=448, le=16384)
    vision_encoder: Literal["vit_so400m_patch14_siglip_384.webli"] = "vit_so400m_patch14_siglip_384.webli"
    vision_config: Siglip = SO400M  # the published one names its tower; sizes, in the manner of later ones, go before
    drop_vision_last_layer: bool = True


def tower_of(config: Mapping[str, Any]) -> Siglip:
    """Sizes of the tower; a last layer that is dropped is in no checkpoint."""
    sizes = checked(_Config, text_keys(config))
    layers = sizes.vision_config.num_hidden_layers - sizes.drop_vision_last_layer
    return sizes.vision_config.model_copy(update={"num_hidden_layers": layers})


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing, out of range, or asks for what 2.0 does not have.
    """
    sizes = checked(_Config, text_keys(config))
    refuse_keys(config, NAME, "tie_word_embeddings", "attention_bias")
    vision = tower_of(config).shape("timm-resampler", slice_side=sizes.image_size, queries=sizes.query_num)
    return Architecture(_language_shape(sizes), vision)


def _language_shape(config: _Config) -> LanguageShape:
    return LanguageShape(
        architecture="minicpm",
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
        embedding_scale=config.scale_emb,
        residual_scale=config.scale_depth / config.num_hidden_layers**0.5,
        head_divisor=config.hidden_size / config.dim_model_base,
        permuted_rope=True,
    )


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    queries = architecture.sees.queries, architecture.language.hidden
    return (
        *_vision(architecture.sees),
        *resampler(architecture),
        TensorSpec("projector.query_position", "resampler.pos_embed", queries),
        *decoder(architecture.language, "llm.model", head="llm.lm_head.weight"),
    )


def _vision(shape: VisionShape) -> Iterator[TensorSpec]:
    patches = "vpm.patch_embed"
    yield TensorSpec("vision.patch_embedding", f"{patches}.proj.weight", (shape.hidden, 3, shape.patch, shape.patch))
    yield TensorSpec("vision.patch_embedding.bias", f"{patches}.proj.bias", (shape.hidden,))
    table, held = (1, shape.grid**2, shape.hidden), (f"{patches}.pos_embed",)
    # Resized for every slice: what is mixed of many cells stays as it is.
    yield TensorSpec("vision.position_embedding", "vpm.pos_embed", table, native_names=held)
    for layer in range(shape.layers):
        yield from _layer(shape, f"vision.layers.{layer}", f"vpm.blocks.{layer}")
    yield from layer_norm("vision.post_norm", "vpm.norm", shape.hidden)


def _layer(shape: VisionShape, name: str, hub_name: str) -> Iterator[TensorSpec]:
    width, ffn = shape.hidden, shape.ffn
    yield from layer_norm(f"{name}.norm1", f"{hub_name}.norm1", width)
    yield from matrix(f"{name}.attention.qkv", f"{hub_name}.attn.qkv", (3 * width, width))
    yield from matrix(f"{name}.attention.o", f"{hub_name}.attn.proj", (width, width))
    yield from layer_norm(f"{name}.norm2", f"{hub_name}.norm2", width)
    yield from matrix(f"{name}.mlp.up", f"{hub_name}.mlp.fc1", (ffn, width), may_grow="rows")
    yield from matrix(f"{name}.mlp.down", f"{hub_name}.mlp.fc2", (width, ffn), may_grow="columns")


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.minicpmv_inputs import Layout, MiniCpmVProcessor
    from mcpmq.families.slicing import ConfiguredSlicing

    tags = {"numbered": False, "slices_as_images": True}
    return MiniCpmVProcessor.open(checkpoint, Layout("</s>", slicing=ConfiguredSlicing, template=TEMPLATE, **tags))


def _pixels(folder: Path) -> Pixels:
    from mcpmq.families.slicing import ConfiguredSlicing

    return ConfiguredSlicing.open(folder)


MINICPM_V_2_0 = Family(
    name=NAME,
    published=("openbmb/MiniCPM-V-2",),
    recognises=lambda config: config.get("model_type") == "minicpmv" and version_of(config) == "2.0",
    architecture=architecture_of,
    tensors=_tensors,
    processor=_processor,
    pixels=_pixels,
    native="mcpmq.families.minicpmv2_native:build",
    refusals=(
        (
            "gguf",
            "llama.cpp takes positions of patches from the nearest cell of a table of 70 by 70, the original resizes one"
            " of 27 by 27 to every slice; and its GELU is the approximate one",
        ),
    ),
    fed_by=(("resampler.proj", "resampler.ln_post"),),
    folds=(*GATED_LANGUAGE, *QWEN_VISION, *RESAMPLER),
)
