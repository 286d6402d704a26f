"""Artifacts, their report and the terms of the original as one folder that can be published."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcpmq.artifact import Artifact, appearing_whole, write_manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ReleaseError
from mcpmq.formats.sharding import LEAST_RUNTIMES, divide
from mcpmq.gate import Gate, check
from mcpmq.recipe import as_toml
from mcpmq.release.card import ORIGINAL_CARD, Card
from mcpmq.release.license import CARD, Terms, terms_of
from mcpmq.release.record import (
    RECORD,
    PackagedArtifact,
    Release,
    ReleaseRecord,
    files_under,
    record_files,
    write_sums,
)
from mcpmq.report import Report, write_report

PROCESSOR, RECIPES = "processor", "recipes"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a release must be to be made."""

    name: str | None = None
    licence: str | None = None
    base_model: str | None = None  # hub id of the original, for the card
    largest_artifact_nbytes: int | None = None
    largest_file_nbytes: int | None = None
    gates: tuple[Path, ...] = ()  # allowed differences; all must hold
    baseline: Report | None = None  # what gates may compare with


def package(
    artifacts: Sequence[Artifact], checkpoint: Checkpoint, report: Report, out: Path, wanted: Wanted
) -> Release:
    """Assemble a release; every file of every artifact is hashed before and after.

    Raises:
        ReleaseError: an artifact is too large, was not measured or differs by more than a gate allows, two are of one
            kind, or the licence is missing.
        ArtifactError: an artifact's files changed since it was written.
        OutputError: `out` exists with other content, or the disk is full.
    """
    terms = terms_of(checkpoint, wanted.licence)
    _refuse_unlike(artifacts, checkpoint)
    measured = _measured(artifacts, report)
    _refuse_violated(measured, wanted)
    for artifact in artifacts:
        _refuse_large(artifact, wanted.largest_artifact_nbytes)
        artifact.verify()
    with appearing_whole(out) as folder:
        _add_gates(wanted.gates, folder)
        held = [_add(artifact, folder, wanted.largest_file_nbytes) for artifact in artifacts]
        _add_texts(checkpoint, terms, held, folder)
        write_report(measured, folder)
        record = _record(held, measured, terms, wanted, out)
        (folder / CARD).write_text(Card(record, held, _folders(held), measured, terms, wanted.base_model).markdown())
        whole = record.model_copy(update={"files": record_files(folder, files_under(folder))})
        (folder / RECORD).write_text(whole.model_dump_json(indent=1) + "\n")
        write_sums(folder)
    return Release.open(out)


def _refuse_unlike(artifacts: Sequence[Artifact], checkpoint: Checkpoint) -> None:
    kinds = [artifact.manifest.kind for artifact in artifacts]
    for artifact in artifacts:
        manifest = artifact.manifest
        if manifest.kind not in LEAST_RUNTIMES:
            raise ReleaseError(f"`{artifact.path}` is a {manifest.kind} artifact, which no engine loads", "export it")
        if kinds.count(manifest.kind) > 1:
            raise ReleaseError(f"two artifacts are of kind `{manifest.kind}`", "make a release of each")
        if manifest.source.sha256 != checkpoint.sha256:
            raise ReleaseError(
                f"`{artifact.path}` was made from `{manifest.source.name}` ({manifest.source.sha256[:12]}), not from"
                f" `{checkpoint.path}` ({checkpoint.sha256[:12]})",
                "name the checkpoint that it was made from",
            )


def _measured(artifacts: Sequence[Artifact], report: Report) -> Report:
    """The part of a report that is about these artifacts, as they are now."""
    entries = {entry.sha256: entry for entry in report.artifacts}
    for artifact in artifacts:
        if artifact.sha256 not in entries:
            raise ReleaseError(
                f"the report does not measure `{artifact.path}` as it is now", "measure it with `mcpmq evaluate`"
            )
    return report.model_copy(update={"artifacts": tuple(entries[artifact.sha256] for artifact in artifacts)})


def _refuse_violated(report: Report, wanted: Wanted) -> None:
    verdicts = [one for file in wanted.gates for one in check(report, Gate.load(file), wanted.baseline)]
    if violated := [str(verdict) for verdict in verdicts if not verdict.holds]:
        raise ReleaseError(
            "\n".join([f"{len(violated)} of {len(verdicts)} bounds of the gate are violated", *violated]),
            "make it more accurate, or change the gate where that is right",
        )


def _refuse_large(artifact: Artifact, largest_nbytes: int | None) -> None:
    nbytes = sum(artifact.nbytes_by_component().values())
    if largest_nbytes is not None and nbytes > largest_nbytes:
        raise ReleaseError(
            f"`{artifact.path}` has {nbytes:,} bytes, {nbytes - largest_nbytes:,} more than the allowed"
            f" {largest_nbytes:,}",
            "find a recipe that fits with `mcpmq fit`",
        )


def _add(artifact: Artifact, folder: Path, largest_file_nbytes: int | None) -> Artifact:
    """A copy of an artifact, in parts where parts are asked for."""
    target = folder / artifact.manifest.kind
    target.mkdir()
    files = divide(artifact, target, largest_file_nbytes)
    write_manifest(target, artifact.manifest.model_copy(update={"files": ()}), files)
    return Artifact.open(target)


def _add_texts(checkpoint: Checkpoint, terms: Terms, artifacts: Sequence[Artifact], folder: Path) -> None:
    for name in (PROCESSOR, RECIPES):
        (folder / name).mkdir()
    for file in checkpoint.texts:
        shutil.copyfile(file, folder / PROCESSOR / file.name)
    for file in terms.files:
        shutil.copyfile(file, folder / (ORIGINAL_CARD if file.name == CARD else file.name))
    for artifact in artifacts:
        recipe = artifact.manifest.recipe
        (folder / RECIPES / f"{artifact.manifest.kind}.toml").write_text(as_toml(recipe))


def _add_gates(gates: Sequence[Path], folder: Path) -> None:
    for number, gate in enumerate(gates):
        shutil.copyfile(gate, folder / f"gate{f'-{number + 1}' if number else ''}.toml")


def _folders(artifacts: Sequence[Artifact]) -> list[str]:
    return [artifact.path.name for artifact in artifacts]


def _record(artifacts: Sequence[Artifact], report: Report, terms: Terms, wanted: Wanted, out: Path) -> ReleaseRecord:
    return ReleaseRecord(
        name=wanted.name or out.absolute().name,
        source=artifacts[0].manifest.source,
        licence=terms.licence,
        artifacts=tuple(
            PackagedArtifact(
                kind=artifact.manifest.kind,
                folder=artifact.path.name,
                recipe=str(artifact.manifest.recipe["name"]),
                measured_sha256=entry.sha256,
                calibrated_on=artifact.manifest.calibrated_on,
                nbytes=sum(artifact.nbytes_by_component().values()),
                least_runtime=LEAST_RUNTIMES[artifact.manifest.kind],
                versions=artifact.manifest.versions,
            )
            for artifact, entry in zip(artifacts, report.artifacts, strict=True)
        ),
        largest_artifact_nbytes=wanted.largest_artifact_nbytes,
        largest_file_nbytes=wanted.largest_file_nbytes,
        files=(),
    )
