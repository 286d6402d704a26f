"""A raw config.json, checked: sizes in their ranges, and errors that name the key."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from mcpmq.errors import CheckpointError

Width = Annotated[PositiveInt, Field(le=65536)]
HiddenWidth = Annotated[PositiveInt, Field(le=1 << 20)]
Heads = Annotated[PositiveInt, Field(le=1024)]
Layers = Annotated[PositiveInt, Field(le=1000)]
Vocabulary = Annotated[PositiveInt, Field(le=1 << 22)]
Model = TypeVar("Model", bound=BaseModel)


class Checked(BaseModel):
    """Keys that are not named here are somebody else's."""

    model_config = ConfigDict(extra="ignore", frozen=True)


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


def refuse_keys(config: Mapping[str, Any], name: str, *keys: str) -> None:
    """Refuse a configuration that asks for what a family does not have.

    Raises:
        CheckpointError: one of the keys is set.
    """
    for key in keys:
        if config.get(key):
            raise CheckpointError(f"`config.json` sets `{key}`, which {name} does not have")
