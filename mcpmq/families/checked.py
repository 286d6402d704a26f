"""A raw config.json, checked: sizes in their ranges, and errors that name the key."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from mcpmq.errors import CheckpointError

Width = Annotated[PositiveInt, Field(le=65536)]
HiddenWidth = Annotated[PositiveInt, Field(le=1 << 20)]
Heads = Annotated[PositiveInt, Field(le=1024)]
Layers = Annotated[PositiveInt, Field(le=1000)]
Vocabulary = Annotated[PositiveInt, Field(le=1 << 22)]
ROPE_TYPES = ("default", "mrope", "longrope")
Model = TypeVar("Model", bound=BaseModel)


class Checked(BaseModel):
    """Keys that are not named here are somebody else's."""

    model_config = ConfigDict(extra="ignore", frozen=True)


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


def checked(model: type[Model], value: Mapping[str, Any], file: str = "config.json") -> Model:
    """The keys that a model asks for.

    Raises:
        CheckpointError: one is missing or out of range.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"`{file}`: {where}: {first['msg']}", "compare it with the published one") from error


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


def refuse_keys(config: Mapping[str, Any], name: str, *keys: str) -> None:
    """Refuse a configuration that asks for what a family does not have.

    Raises:
        CheckpointError: one of the keys is set.
    """
    for key in keys:
        if config.get(key):
            raise CheckpointError(f"`config.json` sets `{key}`, which {name} does not have")
