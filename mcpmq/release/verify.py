"""Whether a release or an artifact is what it says it is: hashes, files that belong together, engines that load it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mcpmq.artifact import MANIFEST, Artifact, sha256_of
from mcpmq.errors import ReleaseError
from mcpmq.evaluate.measure import engine_name
from mcpmq.formats.provenance import ORIGINS, check_origins
from mcpmq.release.record import AGAIN, RECORD, SUMS, Release, files_under, inside
from mcpmq.runners.inputs_store import SampleFiles
from mcpmq.runners.launcher import ENGINE_OF, run
from mcpmq.system.progress import Progress, silent
from mcpmq.system.table import Table


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to be as it should be."""

    path: Path
    found: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {"path": str(self.path), "verified": list(self.found)}

    def table(self) -> Table:
        """A row for everything that was looked at."""
        return Table(f"{self.path} is what it says it is", [""], [("verified", [one]) for one in self.found])


def verify(path: Path, threads: int, *, load: bool = True, progress: Progress = silent) -> Verified:
    """Hash every file of a release or an artifact, see that its files belong together, and load it in its engines.

    Raises:
        ReleaseError: a file is missing, changed, unlisted, or outside of the folder; or the parts do not agree.
        ArtifactError: files of an artifact are of different models.
        EngineError: an engine does not load it.
    """
    found = list(_release(path, progress)) if (path / RECORD).is_file() else []
    folders = [one.path for one in Release.open(path).artifacts] if found else [path]
    for folder in folders:
        found += _artifact(folder)
        if load:
            found += _loaded(folder, threads)
    return Verified(path, tuple(found))


def _release(path: Path, progress: Progress) -> Iterator[str]:
    release = Release.open(path)
    listed = {record.path: record for record in release.record.files}
    if unlisted := sorted(set(files_under(path)) - {*listed, RECORD, SUMS}):
        raise ReleaseError(f"`{path}` holds {len(unlisted)} files that it does not list, first `{unlisted[0]}`", AGAIN)
    for record in progress(release.record.files, "hashing"):
        file = inside(path, record.path)
        if not file.is_file():
            raise ReleaseError(f"`{record.path}` is missing from `{path}`", AGAIN)
        if sha256_of(file) != record.sha256:
            raise ReleaseError(f"`{file}` is not the file that was released", AGAIN)
    yield f"{len(listed)} files, by their SHA-256"
    _check_sums(release)
    yield f"`{SUMS}` agrees with `{RECORD}`"
    for one in release.record.artifacts:
        manifest = Artifact.open(path / one.folder).manifest
        if (manifest.kind, manifest.source) != (one.kind, release.record.source):
            raise ReleaseError(f"`{path / one.folder}` was made from another model than the release says", AGAIN)
    yield f"{len(release.record.artifacts)} artifacts, all made from `{release.record.source.name}`"


def _check_sums(release: Release) -> None:
    sums = {record.path: record.sha256 for record in release.record.files}
    sums[RECORD] = sha256_of(release.path / RECORD)
    file = release.path / SUMS
    expected = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    if not file.is_file() or file.read_bytes() != expected.encode():
        raise ReleaseError(f"`{file}` does not agree with `{RECORD}`", AGAIN)


def _artifact(folder: Path) -> Iterator[str]:
    artifact = Artifact.open(folder)
    artifact.verify()
    yield f"{folder.name}: {len(artifact.manifest.files)} files are those of `{MANIFEST}`"
    if artifact.manifest.kind in ORIGINS:
        yield f"{folder.name}: {check_origins(artifact)} files say that they are of one model and one recipe"


def _loaded(folder: Path, threads: int) -> Iterator[str]:
    """What no engine loads, as an importance matrix, has nothing to be loaded."""
    kind = Artifact.open(folder).manifest.kind
    if kind == "imatrix":
        return
    engine = ENGINE_OF[kind]
    with TemporaryDirectory(prefix="mcpmq-") as nothing:
        run(engine, folder, SampleFiles(Path(nothing)), threads)
    yield f"{folder.name}: {engine_name(engine)} loads it"
