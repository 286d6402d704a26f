"""How artifacts, checkpoints and sets look, and what a path is."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpmq.system.table import Row, Table, megabytes
from mcpmq.ui.reports import report
from mcpmq.ui.terminal import print_facts, print_table

if TYPE_CHECKING:  # help and errors must be there at once
    from mcpmq.artifact import Artifact
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.dataset import CalibrationSet


def artifact(artifact: "Artifact", *, as_json: bool = False) -> None:
    """What an artifact is, from what, and what it weighs."""
    print_table(_artifact_table(artifact), artifact.manifest.model_dump(mode="json"), as_json=as_json)


def checkpoint(checkpoint: "Checkpoint", *, as_json: bool = False) -> None:
    """What a checkpoint is made of."""
    print_facts("checkpoint", str(checkpoint.path), checkpoint.facts(), as_json=as_json)


def calibration_set(samples: "CalibrationSet", *, as_json: bool = False) -> None:
    """How many images and questions there are."""
    print_facts("set", str(samples.path), _set_facts(samples), as_json=as_json)


def families(*, as_json: bool = False, as_markdown: bool = False) -> None:
    """Which models are supported, and what the formats do with them."""
    from mcpmq.formats.support import facts, table

    print_table(table(), facts(), as_json=as_json, as_markdown=as_markdown)


def path(path: Path, *, as_json: bool = False) -> None:
    """Say what a path is.

    Raises:
        McpmqError: it is nothing that mcpmq knows, or it is broken.
    """
    from mcpmq import artifact as artifacts
    from mcpmq import dataset
    from mcpmq.checkpoint import Checkpoint
    from mcpmq.release.record import RECORD, Release
    from mcpmq.report import JSON_FILE, Report

    if (path / RECORD).is_file():
        release = Release.open(path)
        print_table(release.table(), release.record.model_dump(mode="json"), as_json=as_json)
    elif path.name == JSON_FILE or (path / JSON_FILE).is_file():
        report(Report.load(path), as_json=as_json)
    elif (path / artifacts.MANIFEST).is_file():
        artifact(artifacts.Artifact.open(path), as_json=as_json)
    elif (path / dataset.MANIFEST).is_file():
        calibration_set(dataset.CalibrationSet.open(path), as_json=as_json)
    else:
        checkpoint(Checkpoint.open(path), as_json=as_json)


def _artifact_table(artifact: "Artifact") -> Table:
    manifest = artifact.manifest
    sizes = artifact.nbytes_by_component()
    rows: list[Row] = [
        ("family", [manifest.family]),
        (
            "made from",
            [f"{manifest.source.name}, {megabytes(manifest.source.nbytes)}, sha256 {manifest.source.sha256}"],
        ),
        ("recipe", [str(manifest.recipe.get("name"))]),
        ("calibrated on", [_calibrated_on(artifact)]),
        *((f"{component} saw", [seen]) for component, seen in _coverage(artifact).items()),
        ("weights", [", ".join(f"{count} {name}" for name, count in _schemes(artifact).most_common())]),
        *((f"{name} on disk", [megabytes(nbytes)]) for name, nbytes in sizes.items()),
        ("total on disk", [f"{megabytes(sum(sizes.values()))} in {len(manifest.files)} files"]),
        ("versions", [", ".join(f"{name} {number}" for name, number in manifest.versions.items())]),
    ]
    return Table(f"{manifest.kind} artifact {artifact.path}", [""], rows, manifest.notes)


def _calibrated_on(artifact: "Artifact") -> str:
    used = artifact.manifest.calibrated_on
    if used is None:
        return "nothing: rounded to the nearest"
    return f"{used.name}, {used.samples:,} samples, {used.with_image:,} with an image, sha256 {used.sha256}"


def _coverage(artifact: "Artifact") -> dict[str, str]:
    """What the matrix of every component that saw the fewest tokens saw while calibrating."""
    seen: dict[str, list[dict[str, int]]] = {}
    for record in artifact.manifest.weights:
        if record.tokens is not None:
            seen.setdefault(record.name.partition(".")[0], []).append(record.tokens)
    fewest = {component: min(tokens, key=lambda one: sum(one.values())) for component, tokens in seen.items()}
    return {component: _told_tokens(fewest[component], tokens) for component, tokens in seen.items()}


def _told_tokens(fewest: dict[str, int], tokens: list[dict[str, int]]) -> str:
    figures = ", ".join(f"{count:,} {kind}" for kind, count in fewest.items() if count)
    return f"{'' if all(one == fewest for one in tokens) else 'at least '}{figures} tokens"


def _schemes(artifact: "Artifact") -> Counter[str]:
    return Counter(record.scheme or f"kept {record.dtype}" for record in artifact.manifest.weights)


def _set_facts(samples: "CalibrationSet") -> dict[str, Any]:
    return {
        "samples": len(samples),
        "with_image": sum(sample.image is not None for sample in samples),
        "tags": dict(Counter(tag for sample in samples for tag in sample.tags)),
        "sha256": samples.sha256,
    }
