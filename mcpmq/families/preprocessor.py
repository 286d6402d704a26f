"""preprocessor_config.json, as far as it decides the pixels."""

from pathlib import Path
from typing import Annotated, Self

from annotated_types import MaxLen, MinLen
from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.families.config_schema import Checked, checked
from mcpmq.system.json_file import read_json

Means = Annotated[tuple[float, ...], MinLen(3), MaxLen(3)]  # of red, green and blue
Deviations = Annotated[tuple[PositiveFloat, ...], MinLen(3), MaxLen(3)]


class Preprocessor(Checked):
    """What every family cuts images into; the rest of the file is read by the family's own room."""

    patch_size: PositiveInt = Field(default=14, le=256)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read it from a checkpoint, or from anything written from it.

        Raises:
            CheckpointError: the file is missing or broken.
        """
        return checked(cls, read_json(folder / "preprocessor_config.json"), "preprocessor_config.json")
