"""Llama-style language models: their keys in a raw config.json."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, HeadCount, HiddenSize, IntermediateSize, LayerCount, VocabSize
from mcpmq.families.language_shape import LanguageShape

ROPE_TYPES = ("default", "mrope", "longrope")


class RopeConfig(ConfigSchema):
    """Settings of the rotary embedding."""

    rope_theta: PositiveFloat | None = None
    rope_type: str = "default"
    mrope_section: tuple[PositiveInt, ...] = ()
    partial_rotary_factor: PositiveFloat = Field(default=1.0, le=1)
    short_factor: tuple[PositiveFloat, ...] = ()
    long_factor: tuple[PositiveFloat, ...] = ()
    original_max_position_embeddings: PositiveInt | None = None


class LanguageConfig(ConfigSchema):
    """A Llama-style decoder, the base of more specific schemas. Defaults are those of the transformers class."""

    default_rope_theta: ClassVar[float] = 10000.0
    hidden_size: HiddenSize
    num_hidden_layers: LayerCount
    num_attention_heads: HeadCount
    num_key_value_heads: HeadCount
    head_dim: Annotated[PositiveInt, Field(le=4096)] | None = None
    intermediate_size: IntermediateSize
    vocab_size: VocabSize
    max_position_embeddings: PositiveInt = 32768
    rope_theta: PositiveFloat | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    rope: RopeConfig = RopeConfig()
    # Formats have only these: no other activation function, and no attention within a window.
    hidden_act: Literal["silu"] = "silu"
    use_sliding_window: Literal[False] | None = None
    layer_types: tuple[Literal["linear_attention", "full_attention"], ...] = ()

    @property
    def effective_head_dim(self) -> int:
        """`head_dim`, or the hidden size divided by the number of heads."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def effective_rope_theta(self) -> float:
        """Frequency base of the rotary embedding."""
        return self.rope.rope_theta or self.rope_theta or self.default_rope_theta

    def to_shape(self, gguf_architecture: str, **differences: Any) -> LanguageShape:
        """Return the hyperparameters; `differences` override fields of `LanguageShape`."""
        llama = LanguageShape(
            gguf_architecture=gguf_architecture,
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.effective_head_dim,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            context_length=self.max_position_embeddings,
            rope_theta=self.effective_rope_theta,
            norm_epsilon=self.rms_norm_eps,
            tied_embeddings=self.tie_word_embeddings,
            rope_short_factors=self.rope.short_factor,
            rope_long_factors=self.rope.long_factor,
        )
        return replace(llama, **differences)


class MiniCpmConfig(LanguageConfig):
    """MiniCPM: a Llama-style decoder with scaled embeddings, residuals and logits."""

    scale_emb: PositiveFloat = 1
    scale_depth: PositiveFloat = 1
    dim_model_base: PositiveFloat = 1

    def to_shape(self, gguf_architecture: str, **differences: Any) -> LanguageShape:
        """Return the hyperparameters; `differences` override fields of `LanguageShape`."""
        scales = {
            "embedding_scale": self.scale_emb,
            "residual_scale": self.scale_depth / self.num_hidden_layers**0.5,
            "logits_divisor": self.hidden_size / self.dim_model_base,
        }
        return super().to_shape(gguf_architecture, **{**scales, **differences})


def normalize_text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the language model in one flat form.

    Older configurations have them at the top level, newer ones in `text_config`. The rotary settings are returned as
    `rope`.

    Raises:
        CheckpointError: the rotary embedding type is not supported.
    """
    text = {**config, **_table(config, "text_config")}
    rope = dict(_table(text, "rope_parameters") or _table(text, "rope_scaling"))
    rope_type = rope.setdefault("rope_type", rope.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise CheckpointError(
            f"`config.json` has the unsupported rope_type `{rope_type}`", f"supported: {', '.join(ROPE_TYPES)}"
        )
    if rope_type == "longrope" and text.get("max_position_embeddings") != rope.get("original_max_position_embeddings"):
        raise CheckpointError(
            "`config.json` extends the context beyond `original_max_position_embeddings`, which is not supported",
            "set `max_position_embeddings` to the original value",
        )
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return text | {"rope": rope, "tie_word_embeddings": bool(tied)}


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"`{key}` of `config.json` is not an object", "compare it with the published file")
    return value
