"""Qwen3.5, a language model most of whose layers attend linearly: its keys in a raw config.json, and its sizes."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import Heads, Width
from mcpmq.families.family import LanguageShape, LinearAttention
from mcpmq.families.language import LanguageConfig, Rope


class _Rope(Rope):
    partial_rotary_factor: PositiveFloat = Field(default=0.25, le=1)


class HybridConfig(LanguageConfig):
    """Keys beside those of Llama, and what is taken where a configuration leaves them out."""

    rope: _Rope = _Rope()
    head_dim: PositiveInt = Field(default=256, le=4096)
    layer_types: tuple[Literal["linear_attention", "full_attention"], ...] = ()
    full_attention_interval: PositiveInt = 4
    linear_num_key_heads: Heads = 16
    linear_num_value_heads: Heads = 32
    linear_key_head_dim: Width = 128
    linear_value_head_dim: Width = 128
    linear_conv_kernel_dim: PositiveInt = Field(default=4, le=64)

    @property
    def linear_layers(self) -> tuple[int, ...]:
        every = self.full_attention_interval
        types = self.layer_types or tuple(
            "linear_attention" if (layer + 1) % every else "full_attention" for layer in range(self.num_hidden_layers)
        )
        return tuple(layer for layer, kind in enumerate(types) if kind == "linear_attention")

    def shape(self, architecture: str, **differences: Any) -> LanguageShape:
        """With gates, norms of heads and few channels that are turned.

        Raises:
            CheckpointError: the types of the layers are not as many as the layers.
        """
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise CheckpointError(
                f"`config.json` has {self.num_hidden_layers} layers and the types of {len(self.layer_types)}"
            )
        linear = LinearAttention(
            layers=self.linear_layers,
            key_heads=self.linear_num_key_heads,
            value_heads=self.linear_num_value_heads,
            key_width=self.linear_key_head_dim,
            value_width=self.linear_value_head_dim,
            kernel=self.linear_conv_kernel_dim,
        )
        own = {"linear": linear, "qk_norm": True, "gated_attention": True, "centred_norms": True}
        turned = int(self.head_width * self.rope.partial_rotary_factor)
        return super().shape(architecture, rope_width=turned, **own, **differences)
