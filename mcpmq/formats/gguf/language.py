"""The language model's file: what llama.cpp must know of it before the tensors."""

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType

from mcpmq.errors import FormatError
from mcpmq.families import family_named
from mcpmq.families.family import LanguageShape, LatentAttention, LinearAttention
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.formats.gguf.tokenizer import add_tokenizer
from mcpmq.formats.model_view import Declared

COMPONENTS = {"embedding", "language", "head"}
ROPE_FACTORS = "rope_factors_{}.weight"
SCALED = ("minicpm",)  # llama.cpp reads the scales of these, and has others where a file has none
SCALES = 12.0, 1.4, 256.0  # of embeddings, of layers, and the base of the head's: what llama.cpp takes for `minicpm3`


def computed_slots(quantized: Declared) -> list[Slot]:
    """Tensors that no checkpoint holds: what every frequency of RoPE is divided by, where that is not 1."""
    shape = quantized.architecture.language
    factors = {"long": shape.rope_long_factors, "short": shape.rope_factors}
    return [
        Slot(ROPE_FACTORS.format(name), None, (len(values),), GGMLQuantizationType.F32, values=values)
        for name, values in factors.items()
        if values
    ]


def add_metadata(writer: GGUFWriter, quantized: Declared, needed: tuple[str, ...]) -> None:
    """Sizes of the language model, and the tokenizer, which must have the `needed` tokens.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer.
    """
    shape = quantized.architecture.language
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.latent.value_width if shape.latent else shape.head_width)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_theta)
    if quantized.architecture.deepstack:
        writer.add_uint32(f"{shape.architecture}.n_deepstack_layers", quantized.architecture.deepstack)
    if shape.rope_sections:
        writer.add_rope_dimension_sections([*shape.rope_sections, 0])
    if shape.rope_factors:
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(shape.context)
    if shape.architecture in SCALED:
        writer.add_embedding_scale(shape.embedding_scale)
        writer.add_residual_scale(shape.residual_scale)
        writer.add_logit_scale(shape.head_divisor)
    if shape.latent:
        _add_latent_attention(writer, shape, shape.latent)
    if shape.linear:
        _add_linear_attention(writer, shape, shape.linear)
    template = family_named(quantized.artifact.manifest.family).layout.template
    add_tokenizer(writer, quantized.path, shape.vocabulary, needed, template)


def _add_latent_attention(writer: GGUFWriter, shape: LanguageShape, latent: LatentAttention) -> None:
    """Ranks and widths.

    Raises:
        FormatError: the model has other scales than those that llama.cpp knows by heart.
    """
    embedding, depth, base = SCALES
    known = (embedding, depth / shape.layers**0.5, shape.hidden / base)
    scales = (shape.embedding_scale, shape.residual_scale, shape.head_divisor)
    if not np.allclose(scales, known, rtol=1e-6):
        raise FormatError(f"the model scales by {scales}, llama.cpp by {known}")
    writer.add_q_lora_rank(latent.query_rank)
    writer.add_kv_lora_rank(latent.key_rank)
    writer.add_rope_dimension_count(shape.turned_width)


def _add_linear_attention(writer: GGUFWriter, shape: LanguageShape, linear: LinearAttention) -> None:
    """What llama.cpp must know of layers with a state; it turns heads by M-RoPE even where all three positions agree.

    Raises:
        FormatError: heads of values share heads of keys, which llama.cpp wants in another order.
    """
    if (linear.value_heads, linear.value_width) != (linear.key_heads, linear.key_width):
        raise FormatError(
            f"linear attention has {linear.key_heads} heads of keys and {linear.value_heads} of values; GGUF is written"
            " for as many of both, equally wide"
        )
    frequencies = shape.turned_width // 2
    writer.add_rope_dimension_count(shape.turned_width)
    writer.add_rope_dimension_sections([(frequencies + 2 - axis) // 3 for axis in range(3)] + [0])
    writer.add_ssm_conv_kernel(linear.kernel)
    writer.add_ssm_state_size(linear.key_width)
    writer.add_ssm_group_count(linear.key_heads)
    writer.add_ssm_time_step_rank(linear.value_heads)
    writer.add_ssm_inner_size(linear.value_heads * linear.value_width)
    recurrent = [shape.is_linear(layer) for layer in range(shape.layers)]
    writer.add_array(f"{shape.architecture}.attention.recurrent_layers", recurrent)
