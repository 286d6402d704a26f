"""Gemma 3, a language model with local attention in most layers: its keys in a raw config.json."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, HeadCount, HiddenSize, IntermediateSize, LayerCount, VocabSize
from mcpmq.families.language import LanguageConfig, normalize_text_config
from mcpmq.families.language_shape import LanguageShape, LocalAttention

LOCAL, GLOBAL = "sliding_attention", "full_attention"
LOCAL_ROPE_THETA = 10000.0


class _Rope(ConfigSchema):
    """Rotary settings of one kind of layers."""

    rope_type: Literal["default", "linear"] = "default"
    rope_theta: PositiveFloat | None = None
    factor: PositiveFloat = 1.0


class _LocalRope(_Rope):
    rope_type: Literal["default"] = "default"


class GemmaConfig(LanguageConfig):
    """Additional keys; defaults are those of the transformers class."""

    default_rope_theta: ClassVar[float] = 1000000.0
    hidden_size: HiddenSize = 2304
    num_hidden_layers: LayerCount = 26
    num_attention_heads: HeadCount = 8
    num_key_value_heads: HeadCount = 4
    head_dim: PositiveInt = Field(default=256, le=4096)
    intermediate_size: IntermediateSize = 9216
    vocab_size: VocabSize = 262208
    max_position_embeddings: PositiveInt = 131072
    query_pre_attn_scalar: PositiveFloat = 256
    sliding_window: PositiveInt = 4096
    sliding_window_pattern: PositiveInt = 6  # the last of this many layers has global attention
    attention_types: tuple[Literal["sliding_attention", "full_attention"], ...] = ()
    global_rope: _Rope = _Rope()
    local_rope: _LocalRope = _LocalRope()
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    attention_bias: Literal[False] = False
    use_bidirectional_attention: Literal[False] | None = None
    attn_logit_softcapping: None = None
    final_logit_softcapping: None = None

    @classmethod
    def normalize(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of the language model in one flat form, with the rotary settings of both kinds of layers.

        Raises:
            CheckpointError: the settings are not valid.
        """
        text = {"tie_word_embeddings": True, **config, **(config.get("text_config") or {})}
        given = text.pop("rope_parameters", None) or {}
        is_nested = GLOBAL in given or LOCAL in given
        whole = {**(text.pop("rope_scaling", None) or {}), **({} if is_nested else given)}
        kinds = {
            "global_rope": {"rope_theta": text.get("rope_theta"), **whole, **(given.get(GLOBAL) or {})},
            "local_rope": {"rope_theta": text.get("rope_local_base_freq"), **(given.get(LOCAL) or {})},
        }
        attention_types = text.pop("layer_types", None) or ()
        flat = normalize_text_config({**text, "text_config": None})
        return {**flat, **kinds, "attention_types": attention_types}

    @property
    def local_layers(self) -> tuple[int, ...]:
        """Layers with local attention."""
        every = self.sliding_window_pattern
        if self.attention_types:
            return tuple(layer for layer, kind in enumerate(self.attention_types) if kind == LOCAL)
        return tuple(layer for layer in range(self.num_hidden_layers) if (layer + 1) % every)

    def to_shape(self, gguf_architecture: str, **differences: Any) -> LanguageShape:
        """Return the hyperparameters.

        Raises:
            CheckpointError: `layer_types` does not have one entry per layer.
        """
        if self.attention_types and len(self.attention_types) != self.num_hidden_layers:
            raise CheckpointError(
                f"`config.json` has {self.num_hidden_layers} layers but {len(self.attention_types)} `layer_types`",
                "compare it with the published file",
            )
        theta = self.local_rope.rope_theta or LOCAL_ROPE_THETA
        own = {
            "local_attention": LocalAttention(self.local_layers, self.sliding_window, theta),
            "rope_theta": self.global_rope.rope_theta or self.default_rope_theta,
            "rope_divisor": self.global_rope.factor if self.global_rope.rope_type == "linear" else 1.0,
            "attention_scale": self.query_pre_attn_scalar**-0.5,
            "embedding_scale": self.hidden_size**0.5,
            "activation": "gelu",
            "output_norms": True,
            "offset_norms": True,
            "qk_norm": True,
        }
        return super().to_shape(gguf_architecture, **{**own, **differences})
