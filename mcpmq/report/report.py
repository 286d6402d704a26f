"""The schema of report.json, reading and merging."""

import codecs
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator

from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Difference, Estimate, Measurement, Record, TaskScores, VocabularyDifference
from mcpmq.system.json_file import check_integers

JSON_FILE = "report.json"
MAX_REPORT_NBYTES = 1 << 30
IMAGE_URI = re.compile(r"data:image/(gif|jpeg|png);base64,[A-Za-z0-9+/]*=*")
EVALUATE_AGAIN = "evaluate again with `mcpmq evaluate`"
VocabularyDifferences = Annotated[dict[str, VocabularyDifference] | None, Field(exclude_if=lambda value: value is None)]
SCHEMA_VERSION: Literal[2] = 2  # changes are listed in CHANGELOG.md


class SourceInfo(Record):
    """The original."""

    name: str
    sha256: str


class DatasetInfo(Record):
    """The evaluation set."""

    name: str
    sha256: str
    samples: int
    held_out_from_calibration: bool  # a part of the calibration set, because no evaluation set was given
    images_shuffled: bool  # control: images exchanged between samples
    engine_preprocessing: bool  # control: llama.cpp sliced and resized the images


class Environment(Record):
    """Machine and versions."""

    machine: dict[str, str | int]
    python: str
    versions: dict[str, str]
    threads: int


class CalibrationInfo(Record):
    """The calibration set of an artifact."""

    name: str
    sha256: str


class WeightInfo(Record):
    """Size of the weights of an artifact by scheme, as computed by the plan."""

    bits_per_weight: float
    nbytes_by_scheme: dict[str, int]


class BlockInfo(Record):
    """Bits and quantization error of one block."""

    name: str  # `language.layers.3`
    bits_per_weight: float
    error: float | None  # relative, of outputs or weights; None: not known


class LayerErrors(Record):
    """Bits and errors of all blocks, in the order of the forward pass."""

    error_basis: Literal["outputs", "weights"] | None  # outputs: on held-out samples
    blocks: tuple[BlockInfo, ...]


class WorstSample(Record):
    """A sample with a large loss increase, with the answer and the argmax of both models, token by token.

    The argmax is the most probable token at a position, given the answer up to it.
    """

    id: str
    group: str
    prompt: str
    answer_tokens: tuple[str, ...]
    original_argmax: tuple[str, ...]
    artifact_argmax: tuple[str, ...]
    original_answer: str | None = None  # of greedy decoding; it ends with an ellipsis if it was longer
    artifact_answer: str | None = None  # likewise
    loss_increase: float  # of the whole answer, in nats
    image: str | None  # thumbnail as a data URI

    @field_validator("image")
    @classmethod
    def _check_image(cls, value: str | None) -> str | None:
        """Pages display the image, so it is neither a link nor an SVG image."""
        if value is not None and not IMAGE_URI.fullmatch(value):
            raise ValueError("it is not a data URI of a GIF, JPEG or PNG image")
        return value


class ArtifactResult(Record):
    """The results of one artifact."""

    name: str
    kind: str
    recipe: str
    sha256: str  # of its manifest without the model card
    calibration_set: CalibrationInfo | None
    weights: WeightInfo
    measurement: Measurement
    differences: dict[str, Difference]  # from the original, by group
    vocabulary: VocabularyDifferences = None  # by group, for a trimmed vocabulary
    calibration_kl_divergence: dict[str, Estimate] | None = None  # on calibration samples, by group, in nats
    engine_baseline_differences: dict[str, Difference] | None  # from the engine baseline, by group
    task_scores: dict[str, TaskScores] = Field(default_factory=dict)  # by task, from a score file
    layers: LayerErrors
    worst_samples: tuple[WorstSample, ...]

    @property
    def label(self) -> str:
        return f"{self.kind} {self.recipe}"


class Report(Record):
    """An original and its artifacts, measured on one evaluation set."""

    schema_version: Literal[2] = SCHEMA_VERSION
    checkpoint: SourceInfo
    eval_set: DatasetInfo
    original: Measurement
    artifacts: tuple[ArtifactResult, ...]
    environment: Environment

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read report.json, given its path or its folder.

        Raises:
            ArtifactError: the file is missing, invalid, or has another schema version.
        """
        path = Path(path)
        file = path / JSON_FILE if path.is_dir() else path
        if not file.is_file():
            raise ArtifactError(f"no `{JSON_FILE}` at `{path}`", "`mcpmq evaluate` writes one")
        if (nbytes := file.stat().st_size) > MAX_REPORT_NBYTES:
            raise ArtifactError(f"`{file}` has {nbytes:,} bytes, more than {MAX_REPORT_NBYTES:,}", EVALUATE_AGAIN)
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        check_integers(file, content, ArtifactError, EVALUATE_AGAIN)
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            _check_version(file, content)
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            message = f"`{file}` is not a valid report: {field + ': ' if field else ''}{first['msg']}"
            raise ArtifactError(message, EVALUATE_AGAIN) from error

    @classmethod
    def merge(cls, reports: Sequence["Report"]) -> "Report":
        """Return one report with the artifacts of all reports, and the original of the first.

        Raises:
            ArtifactError: the reports have different checkpoints or evaluation sets, or different scores of the
                original.
        """
        first = reports[0]
        for other in reports[1:]:
            if (other.checkpoint, other.eval_set) != (first.checkpoint, first.eval_set):
                raise ArtifactError(
                    f"one report measures `{first.checkpoint.name}` on `{first.eval_set.name}`, another"
                    f" `{other.checkpoint.name}` on `{other.eval_set.name}`",
                    "merge reports of one checkpoint on one evaluation set",
                )
        artifacts = tuple(entry for one in reports for entry in one.artifacts)
        _check_equal_originals(artifacts)
        return first.model_copy(update={"artifacts": artifacts})


def _check_equal_originals(artifacts: Sequence[ArtifactResult]) -> None:
    """Check that all artifacts have equal scores of the original on every task: tables have one column for it."""
    scores: dict[str, tuple[str, Estimate]] = {}
    for task, found in (item for one in artifacts for item in one.task_scores.items()):
        if scores.setdefault(task, (found.metric, found.original)) != (found.metric, found.original):
            raise ArtifactError(
                f"two artifacts have different scores of the original on the task `{task}`",
                "merge reports with the scores of one run of the original",
            )


class _Version(BaseModel):
    schema_version: int


def _check_version(file: Path, content: bytes) -> None:
    with suppress(ValidationError):
        found = _Version.model_validate_json(content).schema_version
        if found > SCHEMA_VERSION:
            raise ArtifactError(
                f"`{file}` has schema version {found}, this mcpmq reads version {SCHEMA_VERSION}", "update mcpmq"
            )
