"""Validated JSON settings of a checkpoint: config.json and preprocessor_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from annotated_types import MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from mcpmq.errors import CheckpointError
from mcpmq.system.json_file import read_json

HiddenSize = Annotated[PositiveInt, Field(le=65536)]
IntermediateSize = Annotated[PositiveInt, Field(le=1 << 20)]
HeadCount = Annotated[PositiveInt, Field(le=1024)]
LayerCount = Annotated[PositiveInt, Field(le=1000)]
VocabSize = Annotated[PositiveInt, Field(le=1 << 22)]
ChannelMeans = Annotated[tuple[float, ...], MinLen(3), MaxLen(3)]  # red, green, blue
ChannelStds = Annotated[tuple[PositiveFloat, ...], MinLen(3), MaxLen(3)]
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
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"`{file}`: {key}: {first['msg']}", "compare it with the published file") from error


def check_unsupported_keys(config: Mapping[str, Any], name: str, *keys: str) -> None:
    """Check that no feature is enabled that a family does not support.

    Raises:
        CheckpointError: one of the keys is set.
    """
    for key in keys:
        if config.get(key):
            raise CheckpointError(f"`config.json` sets `{key}`, which {name} does not support")


class PreprocessorConfig(ConfigSchema):
    """Keys of preprocessor_config.json that all families have."""

    patch_size: PositiveInt = Field(default=14, le=256)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the file of a checkpoint or an artifact.

        Raises:
            CheckpointError: the file is missing or invalid.
        """
        return validate_config(cls, read_json(folder / "preprocessor_config.json"), "preprocessor_config.json")
