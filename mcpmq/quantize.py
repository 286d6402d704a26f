"""Checkpoint to codes, block by block from disk, block by block to disk; a killed run resumes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcpmq.artifact import (
    MANIFEST,
    Artifact,
    CalibrationRecord,
    Manifest,
    SourceRecord,
    WeightRecord,
    appearing_whole,
    refuse_full_disk,
    write_manifest,
)
from mcpmq.calibrate.sequential import needs_samples, refuse_unseen, round_by_sight
from mcpmq.checkpoint import HUB_PATTERNS, Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import OutputError
from mcpmq.execution.device import CPU, choose, name_of
from mcpmq.plan import Plan, Step
from mcpmq.quantized_model import BLOCKS, Quantized, findings_in, write_block
from mcpmq.rounding.weight import rounded
from mcpmq.scheme import GgmlScheme
from mcpmq.system.environment import PACKAGES, PACKAGES_OF_THE_MODEL, installed_versions
from mcpmq.system.ggml_library import library_path
from mcpmq.system.progress import Progress, silent

REQUEST = "request.json"  # of an unfinished run: what it was asked, so that another question is not mixed in


def quantize(
    plan: Plan,
    out: Path,
    calibration: CalibrationSet | None = None,
    progress: Progress = silent,
    device: str | None = None,
) -> Quantized:
    """Carry out a plan. At most one block's weights are in memory. A finished run of the same plan is returned.

    Where the recipe asks for statistics, the samples of the calibration set pass through the model block by block, and
    their activations are in memory too, that of the `device` of that name or of the one that is chosen for them.

    Raises:
        CalibrationError: the recipe needs a calibration set and there is none, a weight saw nothing of it, or there is
            no such device.
        OutputError: `out` exists, an unfinished run there was asked something else, or the disk is too full.
        CheckpointError: a weight is not finite, or its file changed.
        MissingExtra: ggml's grids are asked for and its code is not installed.
    """
    samples = refuse_unseen(plan, calibration)
    chosen = choose(device) if samples else CPU
    manifest = _manifest(plan, calibration, name_of(chosen))
    if (out / MANIFEST).is_file() and _same_request(Artifact.open(out).manifest, manifest):
        return Quantized.open(out)
    refuse_full_disk(out, plan.nbytes)
    if any(isinstance(step.scheme, GgmlScheme) for step in plan.steps):
        library_path()
    with appearing_whole(out, resumable=True) as folder:
        _claim(folder, manifest)
        (folder / BLOCKS).mkdir(exist_ok=True)
        files = {name: folder / BLOCKS / f"{name}.safetensors" for name in plan.blocks}
        blind = [name for name in files if not any(needs_samples(plan, step) for step in plan.blocks[name])]
        for name in progress(blind, "quantizing"):
            if not files[name].is_file():
                write_block(files[name], {step.name: rounded(plan, step) for step in plan.blocks[name]})
        if not all(file.is_file() for file in files.values()):
            round_by_sight(plan, samples, files, progress, chosen)
        (folder / REQUEST).unlink()
        _finish(plan, folder, manifest, files)
    return Quantized.open(out)


def _same_request(finished: Manifest, asked: Manifest) -> bool:
    nothing = dict.fromkeys(("tokens", "round", "smooth", "input_ranges"))
    weights = tuple(record.model_copy(update=nothing) for record in finished.weights)
    found = {"files": (), "weights": weights, "held_out_errors": None, "device": asked.device}
    return finished.model_copy(update=found) == asked


def _claim(folder: Path, manifest: Manifest) -> None:
    request, asked = folder / REQUEST, manifest.model_dump_json()
    if request.is_file() and request.read_text() != asked:
        raise OutputError(
            f"`{folder}` holds an unfinished run of another recipe, checkpoint, calibration set or device",
            "remove it to begin anew, or ask what that run was asked to resume it",
        )
    request.write_text(asked)


def _finish(plan: Plan, folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    listed: dict[str, list[str]] = {"model": copy_texts(plan.checkpoint, folder)}
    if plan.checkpoint.code:
        listed["code"] = copy_files(plan.checkpoint.code, folder)
    for name, file in files.items():
        listed.setdefault(name.partition(".")[0], []).append(str(file.relative_to(folder)))
    findings = {name: findings_in(file) for name, file in files.items()}
    told = {name: fields for found in findings.values() for name, fields in found.weights.items()}
    weights = tuple(WeightRecord(**{**record.model_dump(), **told.get(record.name, {})}) for record in manifest.weights)
    errors = {name: found.errors for name, found in findings.items() if found.errors} or None
    write_manifest(folder, manifest.model_copy(update={"weights": weights, "held_out_errors": errors}), listed)


def copy_texts(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Copy configuration, tokenizer and processor files, unchanged; their names."""
    texts = sorted({file for pattern in HUB_PATTERNS[1:] for file in checkpoint.path.glob(pattern)})
    return copy_files([file for file in texts if not file.name.endswith(".index.json")], folder)


def copy_files(files: Sequence[Path], folder: Path) -> list[str]:
    """Copy files into a folder; their names."""
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _manifest(plan: Plan, calibration: CalibrationSet | None, device: str | None) -> Manifest:
    checkpoint = plan.checkpoint
    return Manifest(
        kind="quantized",
        family=checkpoint.family.name,
        source=SourceRecord.of(checkpoint),
        recipe=plan.recipe.written(),
        calibrated_on=CalibrationRecord.of(calibration) if calibration and plan.recipe.looks else None,
        device=device,
        versions=installed_versions((*PACKAGES, *(PACKAGES_OF_THE_MODEL if plan.recipe.looks else ()))),
        weights=tuple(map(_record, plan.steps)),
        notes=plan.notes,
    )


def _record(step: Step) -> WeightRecord:
    return WeightRecord(
        name=step.name,
        hub_name=step.spec.hub_name,
        shape=step.spec.shape,
        dtype=step.dtype,
        scheme=str(step.scheme) if step.scheme else None,
        reason=step.reason,
        nbytes=step.nbytes,
        activation=step.activation,
    )
