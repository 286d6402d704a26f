"""Everything mcpmq writes: a directory of files and the manifest that explains them."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError, OutputError

MANIFEST, CARD = "mcpmq.json", "README.md"
FULL = (errno.ENOSPC, errno.EDQUOT, None)  # None: numpy tells of a short write without a number
Kind = Literal["quantized", "gguf", "onnx", "gptq", "awq", "bnb", "compressed-tensors", "imatrix"]
LEFT_OUT = Field(exclude_if=lambda value: value is None)  # of files about what was not calibrated


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """One file of an artifact; `component` is `model` for what belongs to no single one."""

    path: str
    component: str
    nbytes: int
    sha256: str


class WeightRecord(_Record):
    """What was decided about one weight, and why."""

    name: str
    hub_name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: str | None
    reason: str
    nbytes: int
    tokens: Annotated[dict[str, int] | None, LEFT_OUT] = None  # seen while calibrating, by modality
    round: Annotated[str | None, LEFT_OUT] = None  # how, where that was decided by what was seen
    smooth: Annotated[float | None, LEFT_OUT] = None  # the exponent of the scales that its columns took
    activation: Annotated[str | None, LEFT_OUT] = None  # what its inputs are rounded to while it multiplies
    # Lowest and highest input seen while calibrating; of each equal share of the rows where they see different ones.
    input_ranges: Annotated[tuple[tuple[float, float], ...] | None, LEFT_OUT] = None
    stored_shape: Annotated[tuple[int, ...] | None, LEFT_OUT] = None  # [out, in] in the file, where zeros widened it


class CalibrationRecord(_Record):
    """The set whose passing through the model decided how its weights were rounded."""

    name: str
    sha256: str
    samples: int
    with_image: int
    fingerprints: tuple[str, ...]  # of its pictures and text samples, so that none of them is measured on

    @classmethod
    def of(cls, samples: CalibrationSet) -> Self:
        """What is recorded of a set."""
        return cls(
            name=samples.path.resolve().name,
            sha256=samples.sha256,
            samples=len(samples),
            with_image=sum(sample.image is not None for sample in samples),
            fingerprints=samples.fingerprints,
        )


class SourceRecord(_Record):
    """The checkpoint that an artifact was made from."""

    name: str
    sha256: str
    nbytes: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """What is recorded of a checkpoint."""
        return cls(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256, nbytes=checkpoint.nbytes)


class Manifest(_Record):
    """Who made the artifact, from what, how; no time and no path, so equal inputs give equal bytes."""

    schema_version: Literal[1] = 1
    kind: Kind
    family: str
    source: SourceRecord
    recipe: dict[str, Any]
    calibrated_on: Annotated[CalibrationRecord | None, LEFT_OUT] = None  # None: rounding looked at no sample
    # That samples passed on; None for the processor.
    device: Annotated[str | None, LEFT_OUT] = None
    versions: dict[str, str]
    weights: tuple[WeightRecord, ...]
    # By block, of every way of rounding that was tried: square error of its outputs on held-out samples, relative.
    held_out_errors: Annotated[dict[str, dict[str, float]] | None, LEFT_OUT] = None
    notes: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A directory that mcpmq wrote."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the manifest.

        Raises:
            ArtifactError: there is none, or it is not valid.
        """
        if not (path / MANIFEST).is_file():
            raise ArtifactError(f"no `{MANIFEST}` in `{path}`", "point at a folder that mcpmq wrote")
        try:
            return cls(path, Manifest.model_validate_json((path / MANIFEST).read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"`{path / MANIFEST}`: {where}: {first['msg']}") from error

    def verify(self) -> None:
        """Hash every file.

        Raises:
            ArtifactError: one is missing or changed.
        """
        for record in self.manifest.files:
            file = self.path / record.path
            if not file.resolve().is_relative_to(self.path.resolve()) or not file.is_file():
                raise ArtifactError(f"`{record.path}` is missing from `{self.path}`", "make the artifact again")
            if sha256_of(file) != record.sha256:
                raise ArtifactError(f"`{file}` is not the file that was written", "make the artifact again")

    @property
    def sha256(self) -> str:
        """Hash of what was made and from what: of the manifest with the hashes of all files but the model card, which
        gets its figures when they are measured."""
        lasting = tuple(record for record in self.manifest.files if record.path != CARD)
        return hashlib.sha256(
            self.manifest.model_copy(update={"files": lasting}).model_dump_json().encode()
        ).hexdigest()

    def nbytes_by_component(self) -> dict[str, int]:
        """Bytes on disk of every component, in the order of the manifest."""
        sizes: dict[str, int] = {}
        for record in self.manifest.files:
            sizes[record.component] = sizes.get(record.component, 0) + record.nbytes
        return sizes

    def files_of(self, component: str) -> list[Path]:
        """Paths of the files of one component."""
        return [self.path / record.path for record in self.manifest.files if record.component == component]


def replace_text(artifact: Artifact, name: str, text: str) -> None:
    """Write one text file of an artifact anew, and its size and hash into the manifest."""
    _replace(artifact.path / name, text)
    files = [
        record.model_copy(update=_measured(artifact.path / name)) if record.path == name else record
        for record in artifact.manifest.files
    ]
    manifest = artifact.manifest.model_copy(update={"files": tuple(files)})
    _replace(artifact.path / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _measured(file: Path) -> dict[str, int | str]:
    return {"nbytes": file.stat().st_size, "sha256": sha256_of(file)}


def sha256_of(file: Path) -> str:
    """Hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def appearing_whole(out: Path, *, resumable: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the block ends well, and vanishes when it does not.

    With `resumable` an unfinished folder is kept and handed out again.

    Raises:
        OutputError: `out` exists with other content or cannot be made, or the disk is full.
    """
    refuse_existing(out)
    partial = out.parent / f".{out.name}.partial"
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"`{out}` cannot be made: {error.strerror}", "name another folder") from error
    try:
        yield partial
        _synchronise(partial)
        partial.replace(out)
    except BaseException as error:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in FULL:
            free = shutil.disk_usage(out.parent).free
            raise OutputError(f"the disk is full ({free:,} bytes free) while writing `{out}`", "make room") from error
        raise


def refuse_existing(out: Path) -> None:
    """Refuse an output that is there already.

    Raises:
        OutputError: it exists and is not an empty folder.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(f"`{out}` exists and is not empty", "name another folder, or remove this one")
    if out.is_dir():
        out.rmdir()


def refuse_full_disk(out: Path, needed_nbytes: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        OutputError: the disk has too little room.
    """
    existing = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_nbytes:
        raise OutputError(
            f"`{out}` needs {needed_nbytes:,} bytes, the disk has {free:,} free", "make room, or name another disk"
        )


def _synchronise(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def write_manifest(folder: Path, manifest: Manifest, files: Mapping[str, list[str]]) -> None:
    """Hash the files (component -> paths relative to `folder`) and write the manifest beside them."""
    records = tuple(
        FileRecord.model_validate({"path": name, "component": component, **_measured(folder / name)})
        for component, names in files.items()
        for name in names
    )
    whole = manifest.model_copy(update={"files": records})
    (folder / MANIFEST).write_text(whole.model_dump_json(indent=1) + "\n")
