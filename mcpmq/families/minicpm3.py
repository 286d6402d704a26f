"""MiniCPM3: text only, multi-head latent attention, three scales."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat

from mcpmq.errors import CheckpointError
from mcpmq.families.checked import LanguageConfig, Width, checked, text_keys
from mcpmq.families.family import Architecture, Family, LanguageShape, LatentAttention, Pixels, Processor, TensorSpec
from mcpmq.families.folds import LATENT_LANGUAGE
from mcpmq.families.tensors import decoder

END_OF_TURN = "<|im_end|>"


class _Config(LanguageConfig):
    rms_norm_eps: PositiveFloat = 1e-5
    q_lora_rank: Width
    kv_lora_rank: Width
    qk_nope_head_dim: Width
    qk_rope_head_dim: Width
    v_head_dim: Width | None = None
    scale_emb: PositiveFloat = 12
    scale_depth: PositiveFloat = 1.4
    dim_model_base: PositiveFloat = 256


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """Sizes from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or values are wider than queries.
    """
    # Its configurations are older than the key that says that the head is the embedding.
    shape = _language_shape(checked(_Config, text_keys({"tie_word_embeddings": True, **config})))
    if shape.latent and shape.latent.value_width > shape.head_width:
        raise CheckpointError(
            f"`config.json` has values {shape.latent.value_width} wide, wider than queries, {shape.head_width}"
        )
    return Architecture(shape, None)


def _language_shape(config: _Config) -> LanguageShape:
    value_width = config.v_head_dim or config.hidden_size // config.num_attention_heads
    return LanguageShape(
        architecture="minicpm3",
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_width=config.qk_nope_head_dim + config.qk_rope_head_dim,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        rope_theta=config.frequency_base,
        norm_epsilon=config.rms_norm_eps,
        attention_bias=False,
        tied_head=config.tie_word_embeddings,
        latent=LatentAttention(config.q_lora_rank, config.kv_lora_rank, config.qk_nope_head_dim, value_width),
        embedding_scale=config.scale_emb,
        residual_scale=config.scale_depth / config.num_hidden_layers**0.5,
        head_divisor=config.hidden_size / config.dim_model_base,
        rope_width=config.qk_rope_head_dim,
        rope_factors=config.rope.short_factor,
        rope_long_factors=config.rope.long_factor,
    )


def _tensors(architecture: Architecture) -> tuple[TensorSpec, ...]:
    return tuple(decoder(architecture.language, "model"))


def _processor(checkpoint: Path) -> Processor:
    from mcpmq.families.text_inputs import TextProcessor

    return TextProcessor.open(checkpoint, END_OF_TURN)


def _pixels(_: Path) -> Pixels:
    from mcpmq.families.text_inputs import NoPixels

    return NoPixels()


def _recognises(config: Mapping[str, Any]) -> bool:
    """The published configuration has no `model_type`."""
    kind = config.get("model_type")
    return kind == "minicpm3" or (kind is None and "MiniCPM3ForCausalLM" in (config.get("architectures") or ()))


MINICPM3 = Family(
    name="minicpm3",
    published=("openbmb/MiniCPM3-4B",),
    recognises=_recognises,
    architecture=_architecture,
    tensors=_tensors,
    processor=_processor,
    pixels=_pixels,
    native="mcpmq.families.transformers_native:minicpm3",
    sees=False,
    folds=LATENT_LANGUAGE,
)
