"""Artifacts: directories that mcpmq wrote, with a manifest of origin, decisions and file hashes."""

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
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError, OutputError

MANIFEST, MODEL_CARD = "mcpmq.json", "README.md"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, None)  # None: numpy raises an OSError without a number
FormatName = Literal["gguf", "onnx", "gptq", "awq", "bnb", "compressed-tensors"]
Kind = Literal["quantized", "imatrix"] | FormatName
REBUILD, FREE_SPACE = "build the artifact again", "free disk space"
OMIT_IF_NONE = Field(exclude_if=lambda value: value is None)  # keeps manifests without calibration short


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """One file of an artifact; `component` is `model` for a file of the whole model."""

    path: str
    component: str
    nbytes: int
    sha256: str


class WeightRecord(_Record):
    """The decision about one weight, and its reason."""

    name: str
    hub_name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: str | None
    reason: str
    nbytes: int
    calibration_tokens: Annotated[dict[str, int] | None, OMIT_IF_NONE] = None  # by modality
    method: Annotated[str | None, OMIT_IF_NONE] = None  # of a calibrated weight
    smoothing_exponent: Annotated[float | None, OMIT_IF_NONE] = None  # alpha of the scales on its columns
    activation: Annotated[str | None, OMIT_IF_NONE] = None  # quantization of its inputs, `u8`
    # Minimum and maximum calibration input; one pair for every equal share of the rows with an input of its own.
    input_ranges: Annotated[tuple[tuple[float, float], ...] | None, OMIT_IF_NONE] = None
    padded_shape: Annotated[tuple[int, ...] | None, OMIT_IF_NONE] = None  # [out, in] in the file


class CalibrationRecord(_Record):
    """The calibration set of an artifact."""

    name: str
    sha256: str
    samples: int
    with_image: int
    fingerprints: tuple[str, ...]  # of images and text samples, to detect overlap

    @classmethod
    def from_samples(cls, samples: SampleSet) -> Self:
        """Return the record of a sample set."""
        return cls(
            name=samples.path.resolve().name,
            sha256=samples.sha256,
            samples=len(samples),
            with_image=sum(sample.image is not None for sample in samples),
            fingerprints=samples.fingerprints,
        )


class SourceRecord(_Record):
    """The original of an artifact."""

    name: str
    sha256: str
    nbytes: int

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Return the record of a checkpoint."""
        return cls(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256, nbytes=checkpoint.nbytes)


class Manifest(_Record):
    """Origin, recipe, decisions, versions and files of an artifact; no time and no path: equal inputs, equal bytes."""

    schema_version: Literal[1] = 1
    kind: Kind
    family: str
    source: SourceRecord
    recipe: dict[str, Any]
    calibration_set: Annotated[CalibrationRecord | None, OMIT_IF_NONE] = None  # None: not calibrated
    device: Annotated[str | None, OMIT_IF_NONE] = None  # of calibration; None: CPU
    versions: dict[str, str]
    weights: tuple[WeightRecord, ...]
    # By block and method: relative squared error of the outputs on held-out samples.
    held_out_errors: Annotated[dict[str, dict[str, float]] | None, OMIT_IF_NONE] = None
    notes: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact opened for reading."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read the manifest.

        Raises:
            ArtifactError: the manifest is missing or invalid.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise ArtifactError(f"no `{MANIFEST}` in `{path}`", "point at a folder that mcpmq wrote")
        try:
            return cls(path, Manifest.model_validate_json((path / MANIFEST).read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"`{path / MANIFEST}`: {where}: {first['msg']}") from error

    def verify(self) -> None:
        """Check the SHA-256 of every file.

        Raises:
            ArtifactError: a file is missing or changed.
        """
        for record in self.manifest.files:
            file = self.path / record.path
            if not file.resolve().is_relative_to(self.path.resolve()) or not file.is_file():
                raise ArtifactError(f"`{record.path}` is missing from `{self.path}`", REBUILD)
            if file_sha256(file) != record.sha256:
                raise ArtifactError(f"`{file}` differs from its SHA-256 in the manifest", REBUILD)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the manifest without the model card, which changes when results are written into it."""
        files = tuple(record for record in self.manifest.files if record.path != MODEL_CARD)
        return hashlib.sha256(self.manifest.model_copy(update={"files": files}).model_dump_json().encode()).hexdigest()

    def nbytes_by_component(self) -> dict[str, int]:
        """Return the bytes on disk of every component, in the order of the manifest."""
        sizes: dict[str, int] = {}
        for record in self.manifest.files:
            sizes[record.component] = sizes.get(record.component, 0) + record.nbytes
        return sizes

    def component_files(self, component: str) -> list[Path]:
        """Return the paths of the files of one component."""
        return [self.path / record.path for record in self.manifest.files if record.component == component]


def rewrite_file(artifact: Artifact, name: str, text: str) -> None:
    """Replace a text file of an artifact, and update its size and hash in the manifest."""
    _replace(artifact.path / name, text)
    files = [
        record.model_copy(update=_size_and_hash(artifact.path / name)) if record.path == name else record
        for record in artifact.manifest.files
    ]
    manifest = artifact.manifest.model_copy(update={"files": tuple(files)})
    _replace(artifact.path / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _size_and_hash(file: Path) -> dict[str, int | str]:
    return {"nbytes": file.stat().st_size, "sha256": file_sha256(file)}


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic_dir(out: Path, *, resumable: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` if the block succeeds, and removed if it fails.

    With `resumable` an unfinished folder is kept, and yielded again by the next call.

    Raises:
        OutputError: `out` exists and is not empty, it cannot be created, or the disk is full.
    """
    check_output(out)
    partial = out.parent / f".{out.name}.partial"
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"`{out}` cannot be created: {error.strerror}", "give another folder") from error
    try:
        yield partial
        _fsync(partial)
        partial.replace(out)
    except BaseException as error:
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            free = shutil.disk_usage(out.parent).free
            raise OutputError(f"the disk is full ({free:,} bytes free) while writing `{out}`", FREE_SPACE) from error
        raise


def check_output(out: Path) -> None:
    """Check that an output is missing or an empty folder, and remove the empty folder.

    Raises:
        OutputError: the output is a file, or a folder that is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(f"`{out}` exists and is not empty", "give another folder, or delete this one")
    if out.is_dir():
        out.rmdir()


def check_disk_space(out: Path, needed_nbytes: int) -> None:
    """Check that the disk of `out` has enough free space.

    Raises:
        OutputError: the free space is less than `needed_nbytes`.
    """
    existing = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_nbytes:
        raise OutputError(
            f"`{out}` needs {needed_nbytes:,} bytes, the disk has {free:,} free", f"{FREE_SPACE}, or use another disk"
        )


def _fsync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def write_manifest(folder: Path, manifest: Manifest, files: Mapping[str, list[str]]) -> None:
    """Write a manifest with the hashes of files, given by component as paths relative to `folder`."""
    records = tuple(
        FileRecord.model_validate({"path": name, "component": component, **_size_and_hash(folder / name)})
        for component, names in files.items()
        for name in names
    )
    whole = manifest.model_copy(update={"files": records})
    (folder / MANIFEST).write_text(whole.model_dump_json(indent=1) + "\n")
