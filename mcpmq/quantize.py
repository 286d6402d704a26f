"""Checkpoint to codes, block by block from disk, block by block to disk; a killed run resumes."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from mcpmq.artifact import (
    MANIFEST,
    Artifact,
    Manifest,
    SourceRecord,
    WeightRecord,
    appearing_whole,
    refuse_full_disk,
    write_manifest,
)
from mcpmq.calibration import CalibrationSet
from mcpmq.checkpoint import HUB_PATTERNS, Checkpoint
from mcpmq.errors import CheckpointError, OutputError
from mcpmq.ggml_library import library_path
from mcpmq.machine import installed_versions
from mcpmq.plan import Plan, Step
from mcpmq.progress import Progress, silent
from mcpmq.qtensor import QTensor
from mcpmq.quantized import BLOCKS, Quantized, write_block
from mcpmq.recipe import FloatScheme, GgmlScheme
from mcpmq.rounding import ROUNDERS

PIECE_WEIGHTS = 1 << 24  # read at a time; rows are rounded independently
REQUEST = "request.json"  # of an unfinished run: what it was asked, so that another question is not mixed in


def quantize(
    plan: Plan, out: Path, calibration: CalibrationSet | None = None, progress: Progress = silent
) -> Quantized:
    """Carry out a plan. At most one block's weights are in memory. A finished run of the same plan is returned.

    Raises:
        OutputError: `out` exists, an unfinished run there was asked something else, or the disk is too full.
        CheckpointError: a weight is not finite, or its file changed.
        MissingExtra: ggml's grids are asked for and its code is not installed.
    """
    manifest = _manifest(plan, calibration)
    if (out / MANIFEST).is_file() and _same_request(Artifact.open(out).manifest, manifest):
        return Quantized.open(out)
    refuse_full_disk(out, plan.nbytes)
    if any(isinstance(step.scheme, GgmlScheme) for step in plan.steps):
        library_path()
    with appearing_whole(out, resumable=True) as folder:
        _claim(folder, manifest)
        (folder / BLOCKS).mkdir(exist_ok=True)
        files = {name: folder / BLOCKS / f"{name}.safetensors" for name in plan.blocks}
        for name in progress(list(files), "quantizing"):
            if not files[name].is_file():
                write_block(files[name], {step.name: _quantized(plan, step) for step in plan.blocks[name]})
        (folder / REQUEST).unlink()
        _finish(plan, folder, manifest, files)
    return Quantized.open(out)


def _same_request(finished: Manifest, asked: Manifest) -> bool:
    return finished.model_copy(update={"files": ()}) == asked


def _claim(folder: Path, manifest: Manifest) -> None:
    request, asked = folder / REQUEST, manifest.model_dump_json()
    if request.is_file() and request.read_text() != asked:
        raise OutputError(
            f"`{folder}` holds an unfinished run of another recipe, checkpoint or calibration set",
            "remove it to begin anew, or ask what that run was asked to resume it",
        )
    request.write_text(asked)


def _finish(plan: Plan, folder: Path, manifest: Manifest, files: dict[str, Path]) -> None:
    listed: dict[str, list[str]] = {"model": copy_texts(plan.checkpoint, folder)}
    for name, file in files.items():
        listed.setdefault(name.partition(".")[0], []).append(str(file.relative_to(folder)))
    write_manifest(folder, manifest, listed)


def copy_texts(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Copy configuration, tokenizer and processor files, unchanged; their names."""
    texts = sorted({file for pattern in HUB_PATTERNS[1:] for file in checkpoint.path.glob(pattern)})
    names = [file.name for file in texts if not file.name.endswith(".index.json")]
    for name in names:
        shutil.copyfile(checkpoint.path / name, folder / name)
    return names


def _quantized(plan: Plan, step: Step) -> QTensor | Tensor:
    if step.scheme is None or isinstance(step.scheme, FloatScheme):
        weight = _finite(plan.checkpoint.load(step.spec), step)
        return weight if step.scheme is None else _converted(weight, step, step.scheme)
    rounder, scheme = ROUNDERS[plan.recipe.round], step.scheme
    pieces = plan.checkpoint.load_rows(step.spec, PIECE_WEIGHTS)
    return QTensor.stacked((rounder(_finite(rows, step), scheme) for rows in pieces), step.matrix_shape[0])


def _finite(weight: Tensor, step: Step) -> Tensor:
    if not weight.isfinite().all():
        raise CheckpointError(f"`{step.spec.hub_name}` holds values that are not finite", "fetch the checkpoint again")
    return weight


def _converted(weight: Tensor, step: Step, scheme: FloatScheme) -> Tensor:
    converted = weight.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[scheme.dtype])
    if not converted.isfinite().all():
        raise CheckpointError(f"`{step.name}` has values too large for f16", 'write `"bf16"` for it in the recipe')
    return converted


def _manifest(plan: Plan, calibration: CalibrationSet | None) -> Manifest:
    checkpoint = plan.checkpoint
    return Manifest(
        kind="quantized",
        family=checkpoint.family.name,
        source=SourceRecord(name=checkpoint.path.resolve().name, sha256=checkpoint.sha256, nbytes=checkpoint.nbytes),
        recipe=plan.recipe.written(),
        calibration_sha256=calibration.sha256 if calibration else None,
        versions=installed_versions(("mcpmq", "torch", "gguf", "xllamacpp")),
        weights=tuple(map(_record, plan.steps)),
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
    )
