"""Metadata of the language model's GGUF file."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType

from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.families.expert_shape import Experts
from mcpmq.families.language_shape import LanguageShape, LatentAttention
from mcpmq.formats.gguf import gemma, linear_attention
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.gguf.tokenizer import add_tokenizer
from mcpmq.formats.model_view import ModelView

COMPONENTS = {"embedding", "language", "head"}
ROPE_FACTORS = "rope_factors_{}.weight"
SCALED_ARCHITECTURES = ("minicpm",)  # llama.cpp reads their scales from the file
# Constants of llama.cpp for `minicpm3`: embedding scale, depth scale, and the hidden size that logits are scaled by.
MINICPM3_SCALES = 12.0, 1.4, 256.0


def rope_factor_tensors(model: ModelView) -> list[GgufTensor]:
    """Return the LongRoPE factors, the divisors of the rotary frequencies; empty for a model without LongRoPE."""
    shape = model.architecture.language
    factors = {"long": shape.rope_long_factors, "short": shape.rope_short_factors}
    return [
        GgufTensor(ROPE_FACTORS.format(name), None, (len(values),), GGMLQuantizationType.F32, values=values)
        for name, values in factors.items()
        if values
    ]


def add_metadata(writer: GGUFWriter, model: ModelView, required_tokens: tuple[str, ...]) -> None:
    """Write the sizes of the language model, and the tokenizer, which must have the required tokens.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    shape = model.architecture.language
    _add_sizes(writer, shape)
    if model.architecture.num_deepstack_layers:
        writer.add_uint32(f"{shape.gguf_architecture}.n_deepstack_layers", model.architecture.num_deepstack_layers)
    _add_rope(writer, shape)
    if shape.experts:
        _add_experts(writer, shape.experts)
    if shape.gguf_architecture in SCALED_ARCHITECTURES:
        writer.add_embedding_scale(shape.embedding_scale)
        writer.add_residual_scale(shape.residual_scale)
        writer.add_logit_scale(shape.logits_divisor)
    if shape.latent_attention:
        _add_latent_attention(writer, shape, shape.latent_attention)
    if shape.local_attention:
        gemma.add_metadata(writer, shape, shape.local_attention)
    if shape.short_convolution:
        writer.add_shortconv_l_cache(shape.short_convolution.kernel_size)
    if shape.linear_attention:
        linear_attention.add_metadata(writer, shape, shape.linear_attention)
    prompt_format = family_named(model.artifact.manifest.family).prompt_format
    add_tokenizer(writer, model.path, shape.vocab_size, prompt_format, required_tokens)


def _add_sizes(writer: GGUFWriter, shape: LanguageShape) -> None:
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(_kv_heads(shape))
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.latent_attention.v_head_dim if shape.latent_attention else shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_theta)


def _add_experts(writer: GGUFWriter, experts: Experts) -> None:
    writer.add_expert_count(experts.count)
    writer.add_expert_used_count(experts.count_per_token)
    writer.add_expert_feed_forward_length(experts.intermediate_size)
    if experts.shared_intermediate_size:
        writer.add_expert_shared_feed_forward_length(experts.shared_intermediate_size)


def _kv_heads(shape: LanguageShape) -> int | list[int]:
    """Return the number of key heads, or one for every layer, which is 0 with a convolution."""
    if shape.short_convolution is None:
        return shape.num_kv_heads
    return [0 if shape.is_convolution(layer) else shape.num_kv_heads for layer in range(shape.num_layers)]


def _add_rope(writer: GGUFWriter, shape: LanguageShape) -> None:
    if shape.mrope_sections:
        writer.add_rope_dimension_sections([*shape.mrope_sections, 0])
    if shape.rope_short_factors:
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(shape.context_length)


def _add_latent_attention(writer: GGUFWriter, shape: LanguageShape, latent: LatentAttention) -> None:
    """Write ranks and the rotary dimension of multi-head latent attention.

    Raises:
        FormatError: the scales of the model are not the constants of llama.cpp.
    """
    embedding, depth, base = MINICPM3_SCALES
    constants = (embedding, depth / shape.num_layers**0.5, shape.hidden_size / base)
    scales = (shape.embedding_scale, shape.residual_scale, shape.logits_divisor)
    if not np.allclose(scales, constants, rtol=1e-6):
        raise FormatError(
            f"the model has embedding, residual and logit scales {scales}, llama.cpp uses {constants}",
            "export to another format, for example `onnx`",
        )
    writer.add_q_lora_rank(latent.q_lora_rank)
    writer.add_kv_lora_rank(latent.kv_lora_rank)
    writer.add_rope_dimension_count(shape.rotary_dim)
