"""Score files: scores of the original and of artifacts on tasks, which other programs computed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from mcpmq.artifact import Artifact
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError
from mcpmq.evaluate.lmms_eval import read_lmms_eval
from mcpmq.evaluate.schema import GROUPS, TaskScores
from mcpmq.evaluate.task_scores import compare_scores
from mcpmq.system.input_file import read_text_file
from mcpmq.system.json_file import MAX_JSON_NBYTES, unique_keys

MAX_SAMPLES = 10_000  # of one task: the memory of its intervals grows with them
RESERVED_NAMES = (*GROUPS, "artifact")  # groups of other metrics in gates
FORMAT_HINT = "docs/evaluation.md describes the format of score files"
Name = Annotated[str, Field(min_length=1, max_length=100)]
ScoresByArtifact = Mapping[str, Mapping[str, TaskScores]]  # by SHA-256 and task


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelScores(_Input):
    """The scores of one model."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # of the checkpoint or artifact, as in report.json
    scores: Annotated[dict[str, FiniteFloat], Field(min_length=1)] | str  # by sample; or a sample file of lmms-eval

    def read(self, folder: Path, metric: str) -> Mapping[str, float]:
        """Return the scores by sample; the path of a file is relative to the folder.

        Raises:
            DatasetError: the file is invalid.
        """
        return read_lmms_eval(folder / self.scores, metric) if isinstance(self.scores, str) else self.scores


class Task(_Input):
    """The scores of the original and of artifacts on the same samples."""

    name: Name
    metric: Name
    original: ModelScores
    artifacts: list[ModelScores] = Field(min_length=1)

    @field_validator("name", "metric")
    @classmethod
    def _check_characters(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("it has a control character")
        return value

    @field_validator("name")
    @classmethod
    def _check_reserved(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"`{value}` is the name of other metrics in gates")
        return value


class ScoreFile(_Input):
    """The content of a score file."""

    schema_version: Literal[1]
    tasks: list[Task] = Field(min_length=1)


def read_scores(file: Path, checkpoint: Checkpoint, artifacts: Iterable[Artifact]) -> ScoresByArtifact:
    """Return the scores of artifacts, compared with those of their original.

    Scores of other artifacts are ignored: one file may have those of several formats.

    Raises:
        DatasetError: the file is invalid, its original is another checkpoint, an artifact has no scores in it, or the
            samples of an artifact are not those of the original.
    """
    tasks = _load(file)
    for task in tasks:
        if task.original.sha256 != checkpoint.sha256:
            raise DatasetError(
                f"`{file}`, task `{task.name}`: the original has the SHA-256 {task.original.sha256[:12]},"
                f" `{checkpoint.path}` has {checkpoint.sha256[:12]}",
                "give the scores of the original that the artifacts are evaluated against",
            )
    return {
        artifact.sha256: {task.name: _compare(file, task, _find(file, task, artifact)) for task in tasks}
        for artifact in artifacts
    }


def _find(file: Path, task: Task, artifact: Artifact) -> ModelScores:
    found = [one for one in task.artifacts if one.sha256 == artifact.sha256]
    if len(found) != 1:
        hashes = ", ".join(one.sha256[:12] for one in task.artifacts)
        raise DatasetError(
            f"`{file}`, task `{task.name}`: {len(found) or 'no'} entries for `{artifact.path}`"
            f" ({artifact.sha256[:12]}); the entries are for {hashes}",
            "give the scores of the artifact that is evaluated, in one entry",
        )
    return found[0]


def _compare(file: Path, task: Task, entry: ModelScores) -> TaskScores:
    original, artifact = (one.read(file.absolute().parent, task.metric) for one in (task.original, entry))
    where = f"`{file}`, task `{task.name}`"
    if len(original) > MAX_SAMPLES:
        raise DatasetError(f"{where}: {len(original):,} samples, more than {MAX_SAMPLES:,}", "give a part of them")
    if different := original.keys() ^ artifact.keys():
        first = min(different)
        model = "original" if first in original else "artifact"
        raise DatasetError(
            f"{where}: {len(different):,} samples have a score of one model only, such as `{first}` of the {model}",
            "score both models on the same samples",
        )
    return compare_scores(task.metric, original, artifact)


def _load(file: Path) -> list[Task]:
    text = read_text_file(file, DatasetError, FORMAT_HINT, MAX_JSON_NBYTES)
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
        json.dumps(content, ensure_ascii=False).encode()  # fails for surrogates, which no report can have
        tasks = ScoreFile.model_validate(content).tasks
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(name) for name in first["loc"] if "[" not in str(name))
        raise DatasetError(f"`{file}`: {key + ': ' if key else ''}{first['msg']}", FORMAT_HINT) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"`{file}` is not valid JSON: {error}", FORMAT_HINT) from error
    names = [task.name for task in tasks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DatasetError(f"`{file}` has the task `{min(repeated)}` twice", "give every task another name")
    return tasks
