"""The record of a release: its artifacts and the SHA-256 of every file."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mcpmq.artifact import RELEASE_RECORD, Artifact, CalibrationRecord, FileRecord, SourceRecord
from mcpmq.errors import ReleaseError
from mcpmq.system.file_hash import file_sha256
from mcpmq.system.hub_cache import is_inside
from mcpmq.system.json_file import check_integers
from mcpmq.system.table import Row, Table, format_megabytes

RECORD, CHECKSUMS = RELEASE_RECORD, "SHA256SUMS"
HUB_ATTRIBUTES, HUB_CACHE = ".gitattributes", ".cache/huggingface/"  # in downloaded copies, not of the release
REFETCH_HINT = "download the release again, or package it again"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PackagedArtifact(_Record):
    """One artifact of a release, in a folder of its own."""

    kind: str
    folder: str
    recipe: str
    measured_sha256: str  # of the artifact in the report, before its files were split
    calibration_set: CalibrationRecord | None
    nbytes: int
    min_runtime: str
    versions: dict[str, str]


class ReleaseRecord(_Record):
    """Content of a release; no time and no path: equal inputs, equal bytes."""

    schema_version: Literal[1] = 1
    name: str
    source: SourceRecord
    license: str
    artifacts: tuple[PackagedArtifact, ...]
    max_artifact_nbytes: int | None  # limit of the artifacts
    max_file_nbytes: int | None  # size above which files are split
    files: tuple[FileRecord, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """A release opened for reading."""

    path: Path
    record: ReleaseRecord

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the record of a release.

        Raises:
            ReleaseError: the record is missing or invalid, or has a path outside of the folder.
        """
        file = path / RECORD
        if not file.is_file():
            raise ReleaseError(f"no `{RECORD}` in `{path}`", "point at a folder that `mcpmq package` wrote")
        content = file.read_bytes()
        check_integers(file, content, ReleaseError, REFETCH_HINT)
        try:
            record = ReleaseRecord.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ReleaseError(f"`{file}`: {field}: {first['msg']}", REFETCH_HINT) from error
        for name in [file.path for file in record.files] + [artifact.folder for artifact in record.artifacts]:
            safe_join(path, name)
        return cls(path, record)

    @property
    def artifacts(self) -> list[Artifact]:
        return [Artifact.open(self.path / artifact.folder) for artifact in self.record.artifacts]

    def to_table(self) -> Table:
        """Return original, license, artifacts and sizes as a table."""
        record = self.record
        rows: list[Row] = [
            ("original", [f"{record.source.merged_name}, sha256 {record.source.sha256}"]),
            ("license", [record.license]),
            *((artifact.folder, [_describe(artifact)]) for artifact in record.artifacts),
            ("files", [f"{len(record.files)}, {format_megabytes(sum(file.nbytes for file in record.files))}"]),
        ]
        return Table(f"release {self.path}", [""], rows)


def _describe(artifact: PackagedArtifact) -> str:
    return f"{artifact.recipe}, {format_megabytes(artifact.nbytes)}, runs in {artifact.min_runtime}"


def safe_join(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder.

    Raises:
        ReleaseError: the path is outside of the folder.
    """
    pure = PurePosixPath(name)
    path = folder / pure
    try:
        inside = not pure.is_absolute() and ".." not in pure.parts and is_inside(path, folder)
    except (OSError, ValueError, RuntimeError):  # not a valid path, or a loop of links
        inside = False
    if not inside:
        raise ReleaseError(f"`{folder}` lists `{name}`, which is outside of the folder", "do not use this release")
    return path


def list_files(folder: Path) -> list[str]:
    """Return the relative paths of all files in a folder, sorted."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def file_records(folder: Path, names: list[str]) -> tuple[FileRecord, ...]:
    """Return sizes and hashes; the component is the subfolder of a file, or `release`."""
    return tuple(
        FileRecord(
            path=name,
            component=name.partition("/")[0] if "/" in name else "release",
            nbytes=(folder / name).stat().st_size,
            sha256=file_sha256(folder / name),
        )
        for name in names
    )


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS of all other files, in the format of `sha256sum --check`."""
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in list_files(folder) if name != CHECKSUMS]
    (folder / CHECKSUMS).write_text("".join(lines))
