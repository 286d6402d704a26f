"""Hyperparameters of a language model: sizes, the kinds of its attention, norms, and factors."""

from dataclasses import dataclass
from typing import Literal

from mcpmq.families.expert_shape import Experts


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Layers with a recurrent state of fixed size instead of a KV cache (Gated DeltaNet, arXiv 2412.06464)."""

    layers: tuple[int, ...]
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel_size: int  # tokens

    @property
    def values_per_key(self) -> int:
        """Value heads that share a key head; those of one key head are adjacent."""
        return self.num_value_heads // self.num_key_heads

    @property
    def conv_channels(self) -> int:
        """Channels of queries, keys and values, which share one convolution."""
        return 2 * self.num_key_heads * self.key_head_dim + self.num_value_heads * self.value_head_dim


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Ranks and head dimensions of multi-head latent attention (arXiv 2405.04434)."""

    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int  # channels of a query or key head without rotary embedding
    v_head_dim: int


@dataclass(frozen=True, slots=True)
class LocalAttention:
    """Layers whose tokens attend to the last tokens only (sliding-window attention), with their own rotary base."""

    layers: tuple[int, ...]
    window: int  # tokens, among them the attending one
    rope_theta: float


@dataclass(frozen=True, slots=True)
class ShortConvolution:
    """Layers with a gated causal convolution over the last tokens instead of attention."""

    layers: tuple[int, ...]
    kernel_size: int  # tokens


@dataclass(frozen=True, slots=True)
class LanguageShape:
    """Hyperparameters of a language model."""

    gguf_architecture: str  # `general.architecture` of llama.cpp
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    rope_theta: float
    norm_epsilon: float
    attention_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head before the rotary embedding
    tied_embeddings: bool = False  # the head is the embedding; a checkpoint stores it once
    linear_attention: LinearAttention | None = None
    latent_attention: LatentAttention | None = None
    experts: Experts | None = None  # in the place of the FFN in every layer
    local_attention: LocalAttention | None = None
    short_convolution: ShortConvolution | None = None
    bidirectional_images: bool = False  # the tokens of an image attend to all tokens of the image
    attention_scale: float | None = None  # factor of attention scores; None for the inverse root of head_dim
    activation: Literal["silu", "gelu"] = "silu"  # of the MLP; `gelu` is the approximation with tanh
    output_norms: bool = False  # RMSNorm of attention and MLP outputs before the residual addition
    embedding_scale: float = 1.0  # factor of token embeddings; image features are not scaled
    residual_scale: float = 1.0  # factor of the attention and MLP outputs before the residual addition
    logits_divisor: float = 1.0  # the last hidden state is divided by it before the head
    gated_attention: bool = False  # each query head has a gate for its attention output
    offset_norms: bool = False  # norms multiply by 1 + weight
    partial_rotary_dim: int = 0  # channels per head with rotary embedding; 0 for all
    mrope_sections: tuple[int, ...] = ()  # number of frequencies for time, row and column (M-RoPE); () for plain RoPE
    mrope_interleaved: bool = False  # the axes alternate over the frequencies instead of one section each
    rope_divisor: float = 1.0  # of positions, in layers without local attention
    rope_short_factors: tuple[float, ...] = ()  # divisor of each frequency (LongRoPE); () for 1
    rope_long_factors: tuple[float, ...] = ()  # the same for positions after the original context length
    permuted_rope: bool = False  # llama.cpp rotates adjacent channels, so query and key rows are permuted for GGUF

    @property
    def rotary_dim(self) -> int:
        """Channels per head with rotary embedding."""
        return self.partial_rotary_dim or self.head_dim

    @property
    def score_scale(self) -> float:
        """Factor of attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def is_convolution(self, layer: int) -> bool:
        """Return True if the layer has a convolution instead of attention."""
        return self.short_convolution is not None and layer in self.short_convolution.layers

    def is_local(self, layer: int) -> bool:
        """Return True if the layer has local attention."""
        return self.local_attention is not None and layer in self.local_attention.layers

    def is_linear_attention(self, layer: int) -> bool:
        """Return True if the layer uses linear attention."""
        return self.linear_attention is not None and layer in self.linear_attention.layers

    def __str__(self) -> str:
        layers = f"{self.num_layers} layers of width {self.hidden_size}, {self.vocab_size:,} tokens"
        return f"{layers}, {self.experts}" if self.experts else layers
