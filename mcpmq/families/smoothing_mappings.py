"""Smoothing mappings of the block types that several families share."""

from dataclasses import replace

from mcpmq.families.family import SmoothingMapping

# down reads activation(gate) * up, which is linear in up but not in gate.
GATED_FFN = (
    SmoothingMapping("language", "post_attention_norm", ("mlp.gate", "mlp.up")),
    SmoothingMapping("language", "mlp.up", ("mlp.down",)),
)
# Each expert is a block with the second mapping of GATED_FFN; the norm before experts has no mapping, because its
# channels are those of all experts and of the router.
SHARED_EXPERT = SmoothingMapping("language", "shared.mlp.up", ("shared.mlp.down",))
# QK norms, rotary embedding and attention gates do not change the value channels.
DECODER = (
    SmoothingMapping("language", "input_norm", ("attention.q", "attention.k", "attention.v")),
    SmoothingMapping("language", "attention.v", ("attention.o",)),
    *GATED_FFN,
)
# kv_b has no mapping to o: its output rows alternate between keys and values of each head.
LATENT_DECODER = (
    SmoothingMapping("language", "input_norm", ("attention.q_a", "attention.kv_a")),
    SmoothingMapping("language", "attention.norm_q_a", ("attention.q_b",)),
    SmoothingMapping("language", "attention.norm_kv_a", ("attention.kv_b",)),
    *GATED_FFN,
)
# Norms that multiply by 1 + weight.
OFFSET_DECODER = tuple(replace(mapping, offset_norm=mapping.smooth_layer.endswith("norm")) for mapping in DECODER)
# Convolution and SiLU follow the input matrices of linear attention, so only their input norm has a mapping.
LINEAR_INPUTS = ("linear.qkv", "linear.z", "linear.a", "linear.b")
HYBRID_DECODER = (SmoothingMapping("language", "input_norm", LINEAR_INPUTS, offset_norm=True), *OFFSET_DECODER)
# The second third of the input matrix is a gate: it multiplies the inputs of the output matrix.
CONVOLUTION_DECODER = (
    SmoothingMapping("language", "input_norm", ("conv.in",)),
    SmoothingMapping("language", "conv.in", ("conv.out",), row_chunk=(1, 3)),
    *DECODER,
)
# GELU follows up, so up has no mapping to down.
SIGLIP = (
    SmoothingMapping("vision", "norm1", ("attention.q", "attention.k", "attention.v")),
    SmoothingMapping("vision", "attention.v", ("attention.o",)),
    SmoothingMapping("vision", "norm2", ("mlp.up",)),
)
# These norms normalize a concatenated square of patches. norm1 of the merger in the encoder is covered by SIGLIP.
SIGLIP_MERGERS = (
    SmoothingMapping("vision", "norm2", ("up",)),
    SmoothingMapping("projector", "norm", ("up",)),
)
# Keys are normalized values plus position embeddings, so norm_kv cannot be scaled alone.
RESAMPLER = (
    SmoothingMapping("projector", "attention.qkv", ("attention.o",), row_chunk=(2, 3)),
    SmoothingMapping("projector", "norm_post", ("out",)),
)
# The merger norm has no mapping: up reads four normalized patches side by side, so one scale is four columns.
QWEN_VISION = (
    SmoothingMapping("vision", "norm1", ("attention.qkv",)),
    SmoothingMapping("vision", "attention.qkv", ("attention.o",), row_chunk=(2, 3)),
    SmoothingMapping("vision", "norm2", ("mlp.up",)),
)
GATED_QWEN_VISION = (
    *QWEN_VISION[:2],
    SmoothingMapping("vision", "norm2", ("mlp.gate", "mlp.up")),
    SmoothingMapping("vision", "mlp.up", ("mlp.down",)),
)
# The same encoder with a matrix each for queries, keys and values.
SEPARATE_QWEN_VISION = (
    *SIGLIP[:2],
    *GATED_QWEN_VISION[2:],
)
WHISPER = tuple(replace(mapping, component="audio") for mapping in SIGLIP)
