"""MiniCPM3: text only, multi-head latent attention, scaled embeddings, residuals and logits."""

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveFloat

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import HiddenSize, validate_config
from mcpmq.families.family import Architecture, Family
from mcpmq.families.language import MiniCpmConfig, normalize_text_config
from mcpmq.families.language_shape import LatentAttention
from mcpmq.families.smoothing_mappings import LATENT_DECODER
from mcpmq.families.tensors import decoder_specs


class _Config(MiniCpmConfig):
    rms_norm_eps: PositiveFloat = 1e-5
    q_lora_rank: HiddenSize
    kv_lora_rank: HiddenSize
    qk_nope_head_dim: HiddenSize
    qk_rope_head_dim: HiddenSize
    v_head_dim: HiddenSize | None = None
    scale_emb: PositiveFloat = 12
    scale_depth: PositiveFloat = 1.4
    dim_model_base: PositiveFloat = 256


def _parse_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the hyperparameters from a raw config.json.

    Raises:
        CheckpointError: a size is missing or out of range, or value heads are wider than query heads.
    """
    # The published file has no `tie_word_embeddings`; the embeddings are tied.
    sizes = validate_config(_Config, normalize_text_config({"tie_word_embeddings": True, **config}))
    queries = sizes.qk_nope_head_dim + sizes.qk_rope_head_dim
    values = sizes.v_head_dim or sizes.hidden_size // sizes.num_attention_heads
    if values > queries:
        raise CheckpointError(
            f"`config.json` has value heads of {values} channels, more than the {queries} of queries",
            "compare it with the published file",
        )
    language = sizes.to_shape(
        "minicpm3",
        num_kv_heads=sizes.num_attention_heads,
        head_dim=queries,
        latent_attention=LatentAttention(sizes.q_lora_rank, sizes.kv_lora_rank, sizes.qk_nope_head_dim, values),
        partial_rotary_dim=sizes.qk_rope_head_dim,
    )
    return Architecture(language, None)


def _matches(config: Mapping[str, Any]) -> bool:
    """Return True for MiniCPM3; its published configuration has no `model_type`."""
    model_type, classes = config.get("model_type"), config.get("architectures") or ()
    return model_type == "minicpm3" or (model_type is None and "MiniCPM3ForCausalLM" in classes)


MINICPM3 = Family(
    name="minicpm3",
    hub_ids=("openbmb/MiniCPM3-4B",),
    matches=_matches,
    parse_architecture=_parse_architecture,
    tensor_specs=lambda architecture: tuple(decoder_specs(architecture.language, "model")),
    inputs_module="mcpmq.families.text_inputs",
    torch_builder="mcpmq.families.modeling_transformers:minicpm3",
    has_vision=False,
    smoothing_mappings=LATENT_DECODER,
)
