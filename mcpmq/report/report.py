"""What a report holds, read back and put together."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ValidationError

from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Difference, Measurement, Record

JSON_FILE = "report.json"
SCHEMA_VERSION: Literal[2] = 2  # what is new in one is said in CHANGELOG.md


class SourceFacts(Record):
    """The checkpoint that everything is compared with."""

    name: str
    sha256: str


class SetFacts(Record):
    """The samples that everything was measured on."""

    name: str
    sha256: str
    samples: int
    held_out_from_calibration: bool  # no other set was named, so a part of the calibration set was held out
    images_shuffled: bool
    cut_by_engine: bool  # llama.cpp cut and resized the images itself


class Environment(Record):
    """Where and with what it was measured."""

    machine: dict[str, str | int]
    python: str
    versions: dict[str, str]
    threads: int


class CalibrationFacts(Record):
    """The set that decided how an artifact was rounded."""

    name: str
    sha256: str


class WeightFacts(Record):
    """What the weights of an artifact take, by how their numbers are stored; predicted bytes, as the plan has them."""

    bits_per_weight: float
    nbytes_by_scheme: dict[str, int]


class BlockFacts(Record):
    """One block of the model, as it was rounded."""

    name: str  # `language.layers.3`
    bits_per_weight: float
    error: float | None  # relative, of what `errors_of` says; None where it is not known


class LayerPicture(Record):
    """Bits and errors by block, in the order of the forward pass."""

    errors_of: Literal["outputs", "weights"] | None  # outputs: on samples held out from calibration
    blocks: tuple[BlockFacts, ...]


class WorstSample(Record):
    """A sample whose right answer became less likely than that of others, with what greedy decoding says.

    Every text is in tokens, given the right answer so far; where both models are right all three are the same.
    """

    id: str
    kind: str
    prompt: str
    answer: tuple[str, ...]
    original: tuple[str, ...]
    artifact: tuple[str, ...]
    loss_increase: float  # of the whole answer, in nats
    image: str | None  # a small copy, as a data URI


class Entry(Record):
    """One artifact, measured."""

    name: str
    kind: str
    recipe: str
    sha256: str  # of its manifest with the hashes of all files, but for a model card that the figures are written into
    calibrated_on: CalibrationFacts | None
    weights: WeightFacts
    measurement: Measurement
    differences: dict[str, Difference]  # from the original, by kind
    by_quantization: dict[str, Difference] | None  # from the unquantized artifact in the same engine, if that was asked
    layers: LayerPicture
    worst: tuple[WorstSample, ...]

    @property
    def label(self) -> str:
        return f"{self.kind} {self.recipe}"


class Report(Record):
    """What `compare` found out."""

    schema_version: Literal[2] = SCHEMA_VERSION
    checkpoint: SourceFacts
    measured_on: SetFacts
    original: Measurement
    artifacts: tuple[Entry, ...]
    environment: Environment

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read report.json, or the one in a folder.

        Raises:
            ArtifactError: there is none, it is of another version of mcpmq, or it is broken.
        """
        file = path / JSON_FILE if path.is_dir() else path
        if not file.is_file():
            raise ArtifactError(f"no `{JSON_FILE}` at `{path}`", "`mcpmq evaluate` writes one")
        content = file.read_bytes()
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            _refuse_newer(file, content)
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = f"`{file}` is no report that this mcpmq reads: {where + ': ' if where else ''}{first['msg']}"
            raise ArtifactError(message, "measure again with `mcpmq evaluate`") from error

    @classmethod
    def merged(cls, reports: Sequence["Report"]) -> "Report":
        """The artifacts of all of them beside one original.

        Raises:
            ArtifactError: they are about different checkpoints or different samples.
        """
        first = reports[0]
        for other in reports[1:]:
            if (other.checkpoint, other.measured_on) != (first.checkpoint, first.measured_on):
                raise ArtifactError(
                    f"one report is about `{first.checkpoint.name}` on `{first.measured_on.name}`, another about"
                    f" `{other.checkpoint.name}` on `{other.measured_on.name}`",
                    "only reports of one checkpoint on one set can stand in one table",
                )
        return first.model_copy(update={"artifacts": tuple(entry for one in reports for entry in one.artifacts)})


class _Version(BaseModel):
    schema_version: int


def _refuse_newer(file: Path, content: bytes) -> None:
    with suppress(ValidationError):
        found = _Version.model_validate_json(content).schema_version
        if found > SCHEMA_VERSION:
            raise ArtifactError(
                f"`{file}` is of schema {found}, this mcpmq reads schema {SCHEMA_VERSION}", "read it with a newer mcpmq"
            )
