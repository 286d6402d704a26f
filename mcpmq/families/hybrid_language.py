"""Qwen3.5, a language model with linear attention in most layers: its keys in a raw config.json."""

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import HeadCount, HiddenSize
from mcpmq.families.language import LanguageConfig, RopeConfig
from mcpmq.families.language_shape import LanguageShape, LinearAttention

DEFAULT_MROPE_SECTIONS = (11, 11, 10)  # frequencies for time, row and column


class _Rope(RopeConfig):
    partial_rotary_factor: PositiveFloat = Field(default=0.25, le=1)


class HybridConfig(LanguageConfig):
    """Additional keys; defaults are those of the transformers class."""

    rope: _Rope = _Rope()
    head_dim: PositiveInt = Field(default=256, le=4096)
    full_attention_interval: PositiveInt = 4
    linear_num_key_heads: HeadCount = 16
    linear_num_value_heads: HeadCount = 32
    linear_key_head_dim: HiddenSize = 128
    linear_value_head_dim: HiddenSize = 128
    linear_conv_kernel_dim: PositiveInt = Field(default=4, le=64)

    @property
    def linear_layers(self) -> tuple[int, ...]:
        every = self.full_attention_interval
        types = self.layer_types or tuple(
            "linear_attention" if (layer + 1) % every else "full_attention" for layer in range(self.num_hidden_layers)
        )
        return tuple(layer for layer, kind in enumerate(types) if kind == "linear_attention")

    def to_shape(self, gguf_architecture: str, **differences: Any) -> LanguageShape:
        """Return the hyperparameters, with gated attention, QK norms and a partial rotary embedding.

        Raises:
            CheckpointError: `layer_types` does not have one entry per layer, or key heads have no equal number of
                value heads.
        """
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise CheckpointError(
                f"`config.json` has {self.num_hidden_layers} layers but {len(self.layer_types)} `layer_types`",
                "compare it with the published file",
            )
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise CheckpointError(
                f"`config.json` has {self.linear_num_value_heads} value heads of linear attention, not a multiple of"
                f" its {self.linear_num_key_heads} key heads",
                "compare it with the published file",
            )
        linear = LinearAttention(
            layers=self.linear_layers,
            num_key_heads=self.linear_num_key_heads,
            num_value_heads=self.linear_num_value_heads,
            key_head_dim=self.linear_key_head_dim,
            value_head_dim=self.linear_value_head_dim,
            conv_kernel_size=self.linear_conv_kernel_dim,
        )
        own = {"linear_attention": linear, "qk_norm": True, "gated_attention": True, "offset_norms": True}
        turned = int(self.effective_head_dim * self.rope.partial_rotary_factor)
        return super().to_shape(gguf_architecture, partial_rotary_dim=turned, **own, **differences)
