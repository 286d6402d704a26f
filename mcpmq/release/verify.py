"""Verify a release or an artifact: file hashes, provenance of files, loading in the engines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpmq.artifact import MANIFEST, Artifact
from mcpmq.errors import ReleaseError
from mcpmq.evaluate.measure import engine_name
from mcpmq.formats import engine_of
from mcpmq.formats.provenance import check_provenance
from mcpmq.release.record import (
    CHECKSUMS,
    HUB_ATTRIBUTES,
    HUB_CACHE,
    RECORD,
    REFETCH_HINT,
    Release,
    list_files,
    safe_join,
)
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.launcher import run_engine
from mcpmq.system.file_hash import file_sha256
from mcpmq.system.progress import Progress, silent
from mcpmq.system.table import Table
from mcpmq.system.temporary_folder import temporary_folder


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The checks that a release or an artifact passed."""

    path: Path
    checks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return path and checks as plain values."""
        return {"path": str(self.path), "checks": list(self.checks)}

    def to_table(self) -> Table:
        """Return a table with a row for every check."""
        return Table(f"{self.path} is valid", [""], [("checked", [check]) for check in self.checks])


def verify(path: Path, threads: int, *, load: bool = True, progress: Progress = silent) -> VerificationResult:
    """Check the hashes and the provenance of all files, and load the models in their engines.

    Raises:
        ReleaseError: a file is missing, changed, unlisted or outside of the folder, or an artifact has another source.
        ArtifactError: a file of an artifact is changed, or was made from another model or recipe.
        EngineError: an engine does not load an artifact.
    """
    checks = list(_verify_release(path, progress)) if (path / RECORD).is_file() else []
    folders = [artifact.path for artifact in Release.open(path).artifacts] if checks else [path]
    for folder in folders:
        checks += _verify_artifact(folder)
        if load:
            checks += _load(folder, threads)
    return VerificationResult(path, tuple(checks))


def _verify_release(path: Path, progress: Progress) -> Iterator[str]:
    release = Release.open(path)
    _check_files(release, progress)
    yield f"{len(release.record.files)} files match their SHA-256"
    _check_checksums(release)
    yield f"`{CHECKSUMS}` matches `{RECORD}`"
    for packaged in release.record.artifacts:
        manifest = Artifact.open(path / packaged.folder).manifest
        if (manifest.kind, manifest.source.sha256) != (packaged.kind, release.record.source.sha256):
            raise ReleaseError(f"`{path / packaged.folder}` was made from another model than the release", REFETCH_HINT)
    yield f"{len(release.record.artifacts)} artifacts were made from `{release.record.source.merged_name}`"


def _check_files(release: Release, progress: Progress) -> None:
    path, listed = release.path, {record.path for record in release.record.files}
    found = {name for name in list_files(path) if name != HUB_ATTRIBUTES and not name.startswith(HUB_CACHE)}
    if unlisted := sorted(found - {*listed, RECORD, CHECKSUMS}):
        raise ReleaseError(f"`{path}` has {len(unlisted)} unlisted files, first `{unlisted[0]}`", REFETCH_HINT)
    for record in progress(release.record.files, "hashing"):
        file = safe_join(path, record.path)
        if not file.is_file():
            raise ReleaseError(f"`{record.path}` is missing from `{path}`", REFETCH_HINT)
        if file_sha256(file) != record.sha256:
            raise ReleaseError(f"`{file}` is not the released file", REFETCH_HINT)


def _check_checksums(release: Release) -> None:
    checksums = {record.path: record.sha256 for record in release.record.files}
    checksums[RECORD] = file_sha256(release.path / RECORD)
    file = release.path / CHECKSUMS
    expected = "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    if not file.is_file() or file.read_bytes() != expected.encode():
        raise ReleaseError(f"`{file}` does not match `{RECORD}`", REFETCH_HINT)


def _verify_artifact(folder: Path) -> Iterator[str]:
    artifact = Artifact.open(folder)
    artifact.verify()
    yield f"{folder.name}: {len(artifact.manifest.files)} files match `{MANIFEST}`"
    if count := check_provenance(artifact):
        yield f"{folder.name}: {count} files record the same source and recipe as the manifest"


def _load(folder: Path, threads: int) -> Iterator[str]:
    kind = Artifact.open(folder).manifest.kind
    if kind == "imatrix":  # no engine loads it
        return
    engine = engine_of(kind)
    with temporary_folder() as no_samples:
        run_engine(engine, folder, InputsStore(no_samples), threads)
    yield f"{folder.name}: {engine_name(engine)} loads it"
