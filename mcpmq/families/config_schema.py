"""Validated JSON settings of a checkpoint."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from mcpmq.errors import CheckpointError

HiddenSize = Annotated[PositiveInt, Field(le=65536)]
IntermediateSize = Annotated[PositiveInt, Field(le=1 << 20)]
HeadCount = Annotated[PositiveInt, Field(le=1024)]
LayerCount = Annotated[PositiveInt, Field(le=1000)]
VocabSize = Annotated[PositiveInt, Field(le=1 << 22)]
Schema = TypeVar("Schema", bound=BaseModel)


class ConfigSchema(BaseModel):
    """Base of all schemas: immutable, other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def validate_config(schema: type[Schema], value: Mapping[str, Any], file: str = "config.json") -> Schema:
    """Validate the keys of a schema.

    Raises:
        CheckpointError: a key is missing or out of range.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        keys = "".join(f"{key}: " for key in [".".join(map(str, first["loc"]))] if key)
        raise CheckpointError(f"`{file}`: {keys}{first['msg']}", "compare it with the published file") from error


def required_table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the object of a key.

    Raises:
        CheckpointError: the configuration has no such object.
    """
    table = config.get(key)
    if not isinstance(table, Mapping):
        raise CheckpointError(f"`config.json` has no `{key}`", "compare it with the published file")
    return dict(table)


def check_unsupported_keys(config: Mapping[str, Any], name: str, *keys: str) -> None:
    """Check that no feature is enabled that a family does not support.

    Raises:
        CheckpointError: one of the keys is set.
    """
    for key in keys:
        if config.get(key):
            raise CheckpointError(
                f"`config.json` sets `{key}`, which {name} does not support",
                "use the published checkpoint of the family",
            )
