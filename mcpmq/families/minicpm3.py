"""MiniCPM3: text only, multi-head latent attention, three scales."""

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveFloat

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import Width, checked
from mcpmq.families.family import Architecture, Family, LatentAttention
from mcpmq.families.language import LanguageConfig, text_keys
from mcpmq.families.smoothing_mappings import LATENT_LANGUAGE
from mcpmq.families.tensors import decoder


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
    sizes = checked(_Config, text_keys({"tie_word_embeddings": True, **config}))
    queries = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim
    values = sizes.v_head_dim or sizes.hidden_size // sizes.num_attention_heads
    if values > queries:
        raise CheckpointError(f"`config.json` has values {values} wide, wider than queries, {queries}")
    language = sizes.shape(
        "minicpm3",
        kv_heads=sizes.num_attention_heads,
        head_width=queries,
        latent=LatentAttention(sizes.q_lora_rank, sizes.kv_lora_rank, sizes.qk_nope_head_dim, values),
        embedding_scale=sizes.scale_emb,
        residual_scale=sizes.scale_depth / sizes.num_hidden_layers**0.5,
        head_divisor=sizes.hidden_size / sizes.dim_model_base,
        rope_width=sizes.qk_rope_head_dim,
    )
    return Architecture(language, None)


def _recognises(config: Mapping[str, Any]) -> bool:
    """The published configuration has no `model_type`."""
    kind = config.get("model_type")
    return kind == "minicpm3" or (kind is None and "MiniCPM3ForCausalLM" in (config.get("architectures") or ()))


MINICPM3 = Family(
    name="minicpm3",
    published=("openbmb/MiniCPM3-4B",),
    recognises=_recognises,
    architecture=_architecture,
    tensors=lambda architecture: tuple(decoder(architecture.language, "model")),
    inputs="mcpmq.families.text_inputs",
    native="mcpmq.families.modeling_transformers:minicpm3",
    sees=False,
    folds=LATENT_LANGUAGE,
)
