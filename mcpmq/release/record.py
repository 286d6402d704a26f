"""A release: a folder that proves what it is. Its record, and the paths and hashes that bind it."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mcpmq.artifact import Artifact, CalibrationRecord, FileRecord, SourceRecord, sha256_of
from mcpmq.errors import ReleaseError
from mcpmq.system.table import Row, Table, megabytes

RECORD, SUMS = "release.json", "SHA256SUMS"
AGAIN = "fetch it again, or package it again"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PackagedArtifact(_Record):
    """One artifact in a folder of its own."""

    kind: str
    folder: str
    recipe: str
    measured_sha256: str  # of what the report is about: the artifact before it was divided into parts
    calibrated_on: CalibrationRecord | None
    nbytes: int
    least_runtime: str
    versions: dict[str, str]


class ReleaseRecord(_Record):
    """What a release is; no time and no path, so equal inputs give equal bytes."""

    schema_version: Literal[1] = 1
    name: str
    source: SourceRecord
    licence: str
    artifacts: tuple[PackagedArtifact, ...]
    largest_artifact_nbytes: int | None  # the budget it was held to
    largest_file_nbytes: int | None  # the size of parts
    files: tuple[FileRecord, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """A folder that `package` wrote."""

    path: Path
    record: ReleaseRecord

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the record.

        Raises:
            ReleaseError: there is none, it is not valid, or it names a path outside of the folder.
        """
        file = path / RECORD
        if not file.is_file():
            raise ReleaseError(f"no `{RECORD}` in `{path}`", "point at a folder that `mcpmq package` wrote")
        try:
            record = ReleaseRecord.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ReleaseError(f"`{file}`: {'.'.join(map(str, first['loc']))}: {first['msg']}", AGAIN) from error
        for name in [one.path for one in record.files] + [one.folder for one in record.artifacts]:
            inside(path, name)
        return cls(path, record)

    @property
    def artifacts(self) -> list[Artifact]:
        return [Artifact.open(self.path / one.folder) for one in self.record.artifacts]

    def table(self) -> Table:
        """What it is, from what, under which licence, and what it weighs."""
        record = self.record
        rows: list[Row] = [
            ("made from", [f"{record.source.name}, sha256 {record.source.sha256}"]),
            ("licence", [record.licence]),
            *(
                (one.folder, [f"{one.recipe}, {megabytes(one.nbytes)}, runs in {one.least_runtime}"])
                for one in record.artifacts
            ),
            ("files", [f"{len(record.files)}, {megabytes(sum(file.nbytes for file in record.files))}"]),
        ]
        return Table(f"release {self.path}", [""], rows)


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a folder.

    Raises:
        ReleaseError: it leaves the folder.
    """
    pure = PurePosixPath(name)
    found = folder / pure
    if pure.is_absolute() or ".." in pure.parts or not found.resolve().is_relative_to(folder.resolve()):
        raise ReleaseError(f"`{folder}` lists `{name}`, which leaves the folder", "do not use this release")
    return found


def files_under(folder: Path) -> list[str]:
    """Every file, by its path in the folder, sorted."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def record_files(folder: Path, names: list[str]) -> tuple[FileRecord, ...]:
    """Sizes and hashes; the component is the folder that a file lies in, `release` for those in none."""
    return tuple(
        FileRecord(
            path=name,
            component=name.partition("/")[0] if "/" in name else "release",
            nbytes=(folder / name).stat().st_size,
            sha256=sha256_of(folder / name),
        )
        for name in names
    )


def write_sums(folder: Path) -> None:
    """SHA256SUMS of all other files, as `sha256sum --check` reads it."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in files_under(folder) if name != SUMS]
    (folder / SUMS).write_text("".join(lines))
