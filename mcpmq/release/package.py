"""Package artifacts, their report, and the license of the original as a release."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcpmq.artifact import Artifact, write_manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import compressed_view
from mcpmq.errors import ReleaseError
from mcpmq.evaluate.sample_size import MIN_EVALUATION_SAMPLES
from mcpmq.families.blocks import has_experts
from mcpmq.formats import format_of
from mcpmq.formats.sharding import split_artifact
from mcpmq.gate import Gate, check
from mcpmq.recipe import to_toml
from mcpmq.release.card import ORIGINAL_CARD, render_card
from mcpmq.release.license import MODEL_CARD, License, license_of
from mcpmq.release.record import (
    RECORD,
    PackagedArtifact,
    Release,
    ReleaseRecord,
    file_records,
    list_files,
    write_checksums,
)
from mcpmq.report import ArtifactResult, Report, write_report
from mcpmq.system.output import atomic_dir, check_output, lock_output

MIN_SAMPLES = 2  # of a group in a report; one sample has no interval
PROCESSOR, RECIPES = "processor", "recipes"


@dataclass(frozen=True, slots=True)
class ReleaseOptions:
    """Name, license, size limits and gates of a release."""

    name: str | None = None  # default: the name of its folder
    license: str | None = None  # if the checkpoint does not declare one
    base_model: str | None = None  # hub id of the original, for the model card
    max_artifact_nbytes: int | None = None
    max_file_nbytes: int | None = None  # larger files are split
    gates: tuple[Path, ...] = ()  # all must pass
    baseline: Report | None = None  # for the gates


def package(
    artifacts: Sequence[Artifact], checkpoint: Checkpoint, report: Report, out: Path, options: ReleaseOptions
) -> Release:
    """Assemble a release from artifacts in different formats. Every file is hashed before and after the copy.

    Raises:
        ReleaseError: an artifact is too large or not in the report, two have the same format, a figure of the report
            has no interval, a gate fails, or the license is missing.
        ArtifactError: files of an artifact changed.
        OutputError: `out` exists and is not empty, or the disk is full.
    """
    inputs = checkpoint.folders | {artifact.path: "artifact" for artifact in artifacts}
    check_output(out, inputs)
    license = license_of(checkpoint, options.license)
    _check_artifacts(artifacts, checkpoint)
    report = _select_results(report, artifacts)
    _check_intervals(report)
    _check_gates(report, options)
    for artifact in artifacts:
        _check_size(artifact, options.max_artifact_nbytes)
    with lock_output(out):
        for artifact in artifacts:
            artifact.verify()
        _write(artifacts, checkpoint, report, license, out, options)
    return Release.open(out)


def _write(
    artifacts: Sequence[Artifact],
    checkpoint: Checkpoint,
    report: Report,
    license: License,
    out: Path,
    options: ReleaseOptions,
) -> None:
    with atomic_dir(out) as folder:
        _copy_gates(options.gates, folder)
        packaged = [_copy_artifact(artifact, folder, options.max_file_nbytes) for artifact in artifacts]
        _copy_texts(checkpoint, license, packaged, folder)
        write_report(report, folder)
        record = _make_record(packaged, report, license, options, out)
        (folder / MODEL_CARD).write_text(render_card(record, packaged, report, license, options.base_model))
        record = record.model_copy(update={"files": file_records(folder, list_files(folder))})
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
        write_checksums(folder)


def _check_artifacts(artifacts: Sequence[Artifact], checkpoint: Checkpoint) -> None:
    kinds = [artifact.manifest.kind for artifact in artifacts]
    for artifact in artifacts:
        manifest = artifact.manifest
        if format_of(manifest.kind) is None:
            raise ReleaseError(f"`{artifact.path}` is a {manifest.kind} artifact, which no engine loads", "export it")
        if kinds.count(manifest.kind) > 1:
            raise ReleaseError(f"two artifacts have the format `{manifest.kind}`", "package one release for each")
        if manifest.vocabulary != artifacts[0].manifest.vocabulary:
            sizes = " and ".join(str(one.manifest.vocabulary or "all tokens") for one in (artifacts[0], artifact))
            raise ReleaseError(f"the artifacts have different vocabularies: {sizes}", "package one release for each")
        if manifest.layers != artifacts[0].manifest.layers:
            layers = " and ".join(str(one.manifest.layers or "all layers") for one in (artifacts[0], artifact))
            raise ReleaseError(f"the artifacts have different layers: {layers}", "package one release for each")
        if manifest.images != artifacts[0].manifest.images:
            limits = " and ".join(
                str(one.manifest.images or "those of the original") for one in (artifacts[0], artifact)
            )
            raise ReleaseError(f"the artifacts have different image limits: {limits}", "package one release for each")
        if manifest.source.sha256 != checkpoint.sha256:
            raise ReleaseError(
                f"`{artifact.path}` was made from `{manifest.source.merged_name}` ({manifest.source.sha256[:12]}), not"
                f" from `{checkpoint.path}` ({checkpoint.sha256[:12]})",
                "give the original of the artifact, with its adapters",
            )


def _select_results(report: Report, artifacts: Sequence[Artifact]) -> Report:
    """Return the report with the results of these artifacts only."""
    results = {result.sha256: result for result in report.artifacts}
    for artifact in artifacts:
        if artifact.sha256 not in results:
            raise ReleaseError(f"`{artifact.path}` is not in the report", "measure it with `mcpmq evaluate`")
    return report.model_copy(update={"artifacts": tuple(results[artifact.sha256] for artifact in artifacts)})


def _check_gates(report: Report, options: ReleaseOptions) -> None:
    gates = [Gate.load(file) for file in options.gates]
    verdicts = [verdict for gate in gates for verdict in check(report, gate, options.baseline)]
    if violated := [str(verdict) for verdict in verdicts if verdict.status == "failed"]:
        raise ReleaseError(
            "\n".join([f"{len(violated)} of {len(verdicts)} bounds of the gate are violated", *violated]),
            "use a more accurate recipe, or correct the gate",
        )


def _check_intervals(report: Report) -> None:
    """Reject figures that have no interval; those of few samples are marked on the model card."""
    for group, result in report.original.groups.items():
        if result.samples < MIN_SAMPLES:
            raise ReleaseError(
                f"the report measures {result.samples} sample of the group `{group}`: its figures have no interval",
                f"evaluate at least {MIN_EVALUATION_SAMPLES} samples of each kind, with and without an image",
            )


def _check_size(artifact: Artifact, max_nbytes: int | None) -> None:
    nbytes = sum(artifact.nbytes_by_component().values())
    if max_nbytes is not None and nbytes > max_nbytes:
        raise ReleaseError(
            f"`{artifact.path}` has {nbytes:,} bytes, {nbytes - max_nbytes:,} more than the limit of {max_nbytes:,}",
            _smaller_recipe_hint(artifact),
        )


def _smaller_recipe_hint(artifact: Artifact) -> str:
    if has_experts(record.name for record in artifact.manifest.weights):  # `search` refuses them
        return "write a smaller recipe; `mcpmq plan` shows its size"
    return "search a smaller recipe with `mcpmq search`"


def _copy_artifact(artifact: Artifact, folder: Path, max_file_nbytes: int | None) -> Artifact:
    """Copy an artifact, and split its larger files if the format supports it."""
    target = folder / artifact.manifest.kind
    target.mkdir()
    files = split_artifact(artifact, target, max_file_nbytes)
    write_manifest(target, artifact.manifest.model_copy(update={"files": ()}), files)
    return Artifact.open(target)


def _copy_texts(checkpoint: Checkpoint, license: License, artifacts: Sequence[Artifact], folder: Path) -> None:
    for name in (PROCESSOR, RECIPES):
        (folder / name).mkdir()
    with compressed_view(checkpoint, artifacts[0].manifest) as view:
        for text in view.text_files:
            text.copy(folder / PROCESSOR)
    for file in license.files:
        shutil.copyfile(file, folder / (ORIGINAL_CARD if file.name == MODEL_CARD else file.name))
    for artifact in artifacts:
        (folder / RECIPES / f"{artifact.manifest.kind}.toml").write_text(to_toml(artifact.manifest.recipe))


def _copy_gates(gates: Sequence[Path], folder: Path) -> None:
    for number, gate in enumerate(gates):
        shutil.copyfile(gate, folder / f"gate{f'-{number + 1}' if number else ''}.toml")


def _make_record(
    artifacts: Sequence[Artifact], report: Report, license: License, options: ReleaseOptions, out: Path
) -> ReleaseRecord:
    return ReleaseRecord(
        name=options.name or out.absolute().name,
        source=artifacts[0].manifest.source,
        license=license.identifier,
        artifacts=tuple(map(_packaged_artifact, artifacts, report.artifacts)),
        max_artifact_nbytes=options.max_artifact_nbytes,
        max_file_nbytes=options.max_file_nbytes,
        files=(),
    )


def _packaged_artifact(artifact: Artifact, result: ArtifactResult) -> PackagedArtifact:
    target = format_of(artifact.manifest.kind)
    return PackagedArtifact(
        kind=artifact.manifest.kind,
        folder=artifact.path.name,
        recipe=str(artifact.manifest.recipe.get("name", "")),
        measured_sha256=result.sha256,
        calibration_set=artifact.manifest.calibration_set,
        nbytes=sum(artifact.nbytes_by_component().values()),
        min_runtime=target.min_runtime if target else "",
        versions=artifact.manifest.versions,
    )
