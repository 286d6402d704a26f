"""List the differences between two releases or artifacts: files, schemes, sizes, measurements."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from re import sub
from typing import Any

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.evaluate import Estimate
from mcpmq.release.record import RECORD, Release
from mcpmq.report import JSON_FILE, ArtifactResult, Report, report_title
from mcpmq.system.table import Row, Table, format_megabytes


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One changed value; empty where it is missing."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ReleaseDiff:
    """All changes from one folder to another."""

    before: Path
    after: Path
    changes: tuple[FieldChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return paths and changes as plain values."""
        changes = [asdict(change) for change in self.changes]
        return {"before": str(self.before), "after": str(self.after), "changes": changes}

    def to_table(self) -> Table:
        """Return a table with a row for every change."""
        rows: list[Row] = [(change.name, [change.before, change.after]) for change in self.changes]
        title = f"from {self.before} to {self.after}"
        return Table(title, ["before", "after"], rows or [("no change", ["", ""])])


def diff(before: Path, after: Path) -> ReleaseDiff:
    """Compare the manifests and reports of two releases or artifacts; weights are not read.

    Measurements are compared only if both reports have the same original, evaluation set and controls.

    Raises:
        ArtifactError: a path is neither a release nor an artifact, or they have no format in common.
        ReleaseError: the record of a release is invalid.
    """
    old, new = _artifacts(before), _artifacts(after)
    kinds = [kind for kind in old if kind in new]
    if not kinds:
        raise ArtifactError(
            f"`{before}` has {', '.join(old)}, `{after}` has {', '.join(new)}",
            "compare artifacts of the same format",
        )
    changes = [*_changed("format", dict.fromkeys(old, "present"), dict.fromkeys(new, "present"))]
    for kind in kinds:
        changes += _artifact_changes(kind, old[kind], new[kind])
    return ReleaseDiff(before, after, (*changes, *_measurement_changes(before, after, kinds)))


def _artifacts(path: Path) -> dict[str, Artifact]:
    """Return the artifacts of a release, or one artifact, by kind."""
    artifacts = Release.open(path).artifacts if (path / RECORD).is_file() else [Artifact.open(path)]
    return {artifact.manifest.kind: artifact for artifact in artifacts}


def _changed(prefix: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[FieldChange]:
    """Yield the values that differ under the same name."""
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield FieldChange(f"{prefix} {name}".strip(), before.get(name, ""), after.get(name, ""))


def _artifact_changes(kind: str, before: Artifact, after: Artifact) -> list[FieldChange]:
    """Return the changes of origin, schemes, sizes and files."""
    return [
        *_changed(kind, _origin(before), _origin(after)),
        *_scheme_changes(kind, before, after),
        *_changed(f"{kind}, size of", _sizes(before), _sizes(after)),
        *_changed(f"{kind} file", _files(before), _files(after)),
    ]


def _origin(artifact: Artifact) -> dict[str, str]:
    manifest, used = artifact.manifest, artifact.manifest.calibration_set
    return {
        "original": f"{manifest.source.merged_name}, {manifest.source.sha256[:12]}",
        "revision of the original": manifest.source.revision or "",
        "recipe": str(manifest.recipe.get("name", "")),
        "layers": str(manifest.layers or "all of the original"),
        "image limits": str(manifest.images or "those of the original"),
        "vocabulary": str(manifest.vocabulary or "all tokens"),
        "calibration set": f"{used.name}, {used.sha256[:12]}" if used else "none",
        **{f"version of {package}": version for package, version in manifest.versions.items()},
    }


def _sizes(artifact: Artifact) -> dict[str, str]:
    sizes = artifact.nbytes_by_component()
    return {name: format_megabytes(nbytes) for name, nbytes in {**sizes, "all files": sum(sizes.values())}.items()}


def _files(artifact: Artifact) -> dict[str, str]:
    return {record.path: f"{record.nbytes:,} bytes, {record.sha256[:12]}" for record in artifact.manifest.files}


def _scheme_changes(kind: str, before: Artifact, after: Artifact) -> Iterator[FieldChange]:
    """Yield the changed schemes; equal changes of a weight in several layers share a line."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for change in _changed("", _schemes(before), _schemes(after)):
        counts[sub(r"\.layers\.\d+\.", ".layers.*.", change.name), change.before, change.after] += 1
    for (name, old, new), count in counts.items():
        yield FieldChange(f"{kind}, scheme of {name}" + f" ({count} weights)" * (count > 1), old, new)


def _schemes(artifact: Artifact) -> dict[str, str]:
    return {record.name: record.scheme or f"kept {record.dtype}" for record in artifact.manifest.weights}


def _measurement_changes(before: Path, after: Path, kinds: Sequence[str]) -> Iterator[FieldChange]:
    old, new = _report(before), _report(after)
    if old is None or new is None:
        return
    if (old.checkpoint.sha256, old.eval_set) != (new.checkpoint.sha256, new.eval_set):
        yield FieldChange("measurements (not compared: different sets)", _measured_on(old), _measured_on(new))
        return
    for kind in kinds:
        results = [[result for result in report.artifacts if result.kind == kind] for report in (old, new)]
        if all(results):
            yield from _changed(f"{kind}, measured", *(_metrics(found[0]) for found in results))


def _measured_on(report: Report) -> str:
    return f"{report_title(report)}, sha256 {report.eval_set.sha256[:12]}"


def _report(path: Path) -> Report | None:
    """Return the report in a release, or next to an artifact."""
    folder = path if (path / RECORD).is_file() else path.absolute().parent
    return Report.load(folder) if (folder / JSON_FILE).is_file() else None


def _metrics(result: ArtifactResult) -> dict[str, str]:
    """Return every difference from the original with half of its 95 % interval."""
    metrics = {}
    for group, difference in result.differences.items():
        for name, value in difference:
            if isinstance(value, Estimate):
                metrics[f"{group} {name.replace('_', ' ')}"] = _format(value)
    return metrics | {f"{task} score change": _format(one.score_change) for task, one in result.task_scores.items()}


def _format(value: Estimate) -> str:
    return f"{value.value:.4g} ±{value.half_width:.2g}"
