"""The request of one step of a sweep, in a file of the step's folder; a process of its own carries it out."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mcpmq.artifact import FormatName
from mcpmq.errors import SweepError
from mcpmq.recipe import Recipe
from mcpmq.system.durable_file import write_durably

REQUEST_FILE, DONE_FILE, LOG_FILE = "request.json", "done.json", "log.txt"
StepKind = Literal["original", "quantize", "cell"]


class SetRequest(BaseModel):
    """A sample set, the number of samples to draw, and the hash of the drawn samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    samples: int | None
    seed: int
    sha256: str


class StepRequest(BaseModel):
    """Everything that a step needs: the process reads no other settings.

    `original` measures the checkpoint, `quantize` writes a quantized model, and `cell` writes and measures an artifact.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: StepKind
    checkpoint: str
    checkpoint_sha256: str
    recipe: dict[str, Any] | None = None
    format: FormatName | None = None
    calibration: SetRequest | None = None
    evaluation: SetRequest
    quantized: str | None = None  # folder of the quantized model; None for a format that is written in one pass
    cache: str | None = None  # folder for the measurements of originals; None for that of the user
    threads: int = 1
    device: str | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the request in a folder.

        Raises:
            SweepError: it is missing or invalid.
        """
        try:
            return cls.model_validate_json((folder / REQUEST_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            hint = "`mcpmq sweep` writes the requests of its steps"
            raise SweepError(f"`{folder / REQUEST_FILE}` is not a request of a step: {error}", hint) from error

    def write(self, folder: Path) -> None:
        """Write the request into a folder, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / REQUEST_FILE, self.model_dump_json(indent=1))

    def load_recipe(self) -> Recipe:
        """Return the recipe of the request."""
        return Recipe.model_validate(self.recipe)


class StepResult(BaseModel):
    """The result of a finished step; it is written last, so a step with a result is complete."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int  # of the largest process of the step

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the result in the folder of a step; None if the step is not finished."""
        try:
            return cls.model_validate_json((folder / DONE_FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Write the result into the folder of its step."""
        write_durably(folder / DONE_FILE, self.model_dump_json())
