"""A language model in the manner of Llama: its keys in a raw config.json, and its sizes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import (
    Checked,
    Heads,
    HiddenWidth,
    Layers,
    Vocabulary,
    Width,
)
from mcpmq.families.family import LanguageShape

ROPE_TYPES = ("default", "mrope", "longrope")


class Rope(Checked):
    """How positions become angles where that is not plain RoPE."""

    rope_theta: PositiveFloat | None = None
    rope_type: str = "default"
    mrope_section: tuple[PositiveInt, ...] = ()
    partial_rotary_factor: PositiveFloat = Field(default=1.0, le=1)
    short_factor: tuple[PositiveFloat, ...] = ()
    long_factor: tuple[PositiveFloat, ...] = ()
    original_max_position_embeddings: PositiveInt | None = None


class LanguageConfig(Checked):
    """A decoder in the manner of Llama; a family narrows what it knows better. What a configuration leaves out is what
    the class in transformers takes."""

    default_theta: ClassVar[float] = 10000.0
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    head_dim: Annotated[PositiveInt, Field(le=4096)] | None = None
    intermediate_size: HiddenWidth
    vocab_size: Vocabulary
    max_position_embeddings: PositiveInt = 32768
    rope_theta: PositiveFloat | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = False
    rope: Rope = Rope()

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def frequency_base(self) -> float:
        return self.rope.rope_theta or self.rope_theta or self.default_theta

    def shape(self, architecture: str, **differences: Any) -> LanguageShape:
        """Of an architecture as llama.cpp calls it, and what it has otherwise than Llama."""
        plain = LanguageShape(
            architecture=architecture,
            hidden=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_width=self.head_width,
            ffn=self.intermediate_size,
            vocabulary=self.vocab_size,
            context=self.max_position_embeddings,
            rope_theta=self.frequency_base,
            norm_epsilon=self.rms_norm_eps,
            tied_head=self.tie_word_embeddings,
            rope_factors=self.rope.short_factor,
            rope_long_factors=self.rope.long_factor,
        )
        return replace(plain, **differences)


def text_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's keys, which published configurations have beside the others and later ones in a table of
    their own, and under `rope` what they say of positions.

    Raises:
        CheckpointError: positions become angles in a way that is not supported.
    """
    text = {**config, **(config.get("text_config") or {})}
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    kind = rope.setdefault("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise CheckpointError(f"`config.json` asks for `{kind}` positions", f"supported: {', '.join(ROPE_TYPES)}")
    if kind == "longrope" and text.get("max_position_embeddings") != rope.get("original_max_position_embeddings"):
        raise CheckpointError("`config.json` stretches positions beyond the context that the model was trained on")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return text | {"rope": rope, "tie_word_embeddings": bool(tied)}
