"""What changed between two releases, or two artifacts: files, schemes, sizes, measurements."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import sub
from typing import Any

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.evaluate.bootstrap import Estimate
from mcpmq.release.record import RECORD, Release
from mcpmq.report import JSON_FILE, Entry, Report
from mcpmq.system.table import Row, Table, megabytes


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was; empty where it was not there."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes from one folder to another."""

    before: Path
    after: Path
    changes: tuple[Change, ...]

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        changes = [{"what": one.what, "before": one.before, "after": one.after} for one in self.changes]
        return {"before": str(self.before), "after": str(self.after), "changes": changes}

    def table(self) -> Table:
        """A row for every change."""
        rows: list[Row] = [(one.what, [one.before, one.after]) for one in self.changes]
        title = f"from {self.before} to {self.after}"
        return Table(title, ["before", "after"], rows or [("no change", ["", ""])])


def diff(before: Path, after: Path) -> Difference:
    """Compare what the manifests and reports of two releases or artifacts say; no large file is read.

    Raises:
        ArtifactError: one of them is neither, or they have no format in common.
        ReleaseError: a record is broken.
    """
    ours, theirs = _artifacts(before), _artifacts(after)
    kinds = [kind for kind in ours if kind in theirs]
    if not kinds:
        raise ArtifactError(
            f"`{before}` holds {', '.join(ours)}, `{after}` holds {', '.join(theirs)}",
            "compare artifacts of the same format",
        )
    changes = [*_changed("format", dict.fromkeys(ours, "there"), dict.fromkeys(theirs, "there"))]
    for kind in kinds:
        changes += _changes(kind, ours[kind], theirs[kind])
    return Difference(before, after, (*changes, *_measured_changes(before, after, kinds)))


def _artifacts(path: Path) -> dict[str, Artifact]:
    """By kind."""
    found = Release.open(path).artifacts if (path / RECORD).is_file() else [Artifact.open(path)]
    return {artifact.manifest.kind: artifact for artifact in found}


def _changed(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    """Values that are not the same under the same name."""
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield Change(f"{what} {name}".strip(), before.get(name, ""), after.get(name, ""))


def _changes(kind: str, before: Artifact, after: Artifact) -> list[Change]:
    """Where it comes from, how each weight is stored, what the components weigh, which files there are."""
    return [
        *_changed(kind, _origin(before), _origin(after)),
        *_scheme_changes(kind, before, after),
        *_changed(f"{kind}, size of", _sizes(before), _sizes(after)),
        *_changed(f"{kind} file", _files(before), _files(after)),
    ]


def _origin(artifact: Artifact) -> dict[str, str]:
    manifest, used = artifact.manifest, artifact.manifest.calibrated_on
    return {
        "source": f"{manifest.source.name}, {manifest.source.sha256[:12]}",
        "recipe": str(manifest.recipe["name"]),
        "calibrated on": f"{used.name}, {used.sha256[:12]}" if used else "nothing",
        **{f"version of {name}": number for name, number in manifest.versions.items()},
    }


def _sizes(artifact: Artifact) -> dict[str, str]:
    sizes = artifact.nbytes_by_component()
    return {name: megabytes(nbytes) for name, nbytes in {**sizes, "all files": sum(sizes.values())}.items()}


def _files(artifact: Artifact) -> dict[str, str]:
    return {record.path: f"{record.nbytes:,} bytes, {record.sha256[:12]}" for record in artifact.manifest.files}


def _scheme_changes(kind: str, before: Artifact, after: Artifact) -> Iterator[Change]:
    """Weights of layers that changed alike share a line."""
    ours, theirs = _schemes(before), _schemes(after)
    alike: Counter[tuple[str, str, str]] = Counter()
    for one in _changed("", ours, theirs):
        alike[sub(r"\.layers\.\d+\.", ".layers.*.", one.what), one.before, one.after] += 1
    for (name, old, new), count in alike.items():
        yield Change(f"{kind}, scheme of {name}" + f" ({count} weights)" * (count > 1), old, new)


def _schemes(artifact: Artifact) -> dict[str, str]:
    return {record.name: record.scheme or f"kept {record.dtype}" for record in artifact.manifest.weights}


def _measured_changes(before: Path, after: Path, kinds: Sequence[str]) -> Iterator[Change]:
    ours, theirs = _report(before), _report(after)
    if ours is None or theirs is None:
        return
    if ours.measured_on.sha256 != theirs.measured_on.sha256:
        yield Change("measured on", ours.measured_on.name, theirs.measured_on.name)
    for kind in kinds:
        old, new = ([one for one in report.artifacts if one.kind == kind] for report in (ours, theirs))
        if old and new:
            yield from _changed(f"{kind}, measured", _figures(old[0]), _figures(new[0]))


def _report(path: Path) -> Report | None:
    """A release holds its report; that of an artifact lies beside it."""
    folder = path if (path / RECORD).is_file() else path.absolute().parent
    return Report.load(folder) if (folder / JSON_FILE).is_file() else None


def _figures(entry: Entry) -> dict[str, str]:
    """Every estimated difference from the original, with its standard error."""
    figures = {}
    for kind, difference in entry.differences.items():
        for name, value in difference:
            if isinstance(value, Estimate):
                told = f"{value.value:.4g} ± {value.standard_error:.2g}"
                figures[f"{kind} {name.replace('_', ' ')}"] = told
    return figures
