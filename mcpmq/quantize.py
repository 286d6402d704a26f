"""Quantize a checkpoint: read and write one block at a time; an interrupted run resumes."""

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
    atomic_dir,
    check_disk_space,
    write_manifest,
)
from mcpmq.calibrate.sequential import calibrate_sequentially, needs_calibration, require_calibration
from mcpmq.checkpoint import HUB_PATTERNS, Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import OutputError
from mcpmq.execution.device import CPU, device_name, resolve_device
from mcpmq.plan import Plan, TensorPlan
from mcpmq.quantized_model import BLOCKS_DIRECTORY, QuantizedModel, read_calibration_result, write_block
from mcpmq.rounding.weight import quantize_weight
from mcpmq.scheme import GgmlScheme
from mcpmq.system.environment import ARTIFACT_PACKAGES, MODEL_PACKAGES, installed_versions
from mcpmq.system.ggml_library import library_path
from mcpmq.system.progress import Progress, silent

REQUEST_FILE = "request.json"  # the manifest of an unfinished run, so that only the same request resumes it


def quantize(
    plan: Plan,
    out: str | Path,
    calibration: SampleSet | None = None,
    progress: Progress = silent,
    device: str | None = None,
) -> QuantizedModel:
    """Carry out a plan and write the quantized model to `out`; a finished run of the same plan is returned.

    The weights of at most one block are in memory. If the recipe needs calibration, the calibration samples pass
    through the model block by block on `device`, or on the best available one, and their activations are in its memory.

    Raises:
        DatasetError: the recipe needs a calibration set and none is given, or a weight gets no input from it.
        DeviceError: the device is not available.
        OutputError: `out` exists, has an unfinished run of another request, or the disk is full.
        CheckpointError: a weight is not finite, or its file changed.
        MissingExtra: a scheme of ggml is used and xllamacpp is not installed.
    """
    samples, out = require_calibration(plan, calibration), Path(out)
    calibration_device = resolve_device(device) if samples else CPU
    manifest = _manifest(plan, calibration, device_name(calibration_device))
    if (out / MANIFEST).is_file() and _same_request(Artifact.open(out).manifest, manifest):
        return QuantizedModel.open(out)
    check_disk_space(out, plan.nbytes)
    if any(isinstance(tensor.scheme, GgmlScheme) for tensor in plan.tensors):
        library_path()
    with atomic_dir(out, resumable=True) as folder:
        _write_request(folder, manifest)
        files = _block_files(plan, folder)
        _quantize_uncalibrated_blocks(plan, files, progress)
        if not all(file.is_file() for file in files.values()):
            calibrate_sequentially(plan, samples, files, progress, calibration_device)
        (folder / REQUEST_FILE).unlink()
        _finish(plan, folder, manifest, files)
    return QuantizedModel.open(out)


def _block_files(plan: Plan, folder: Path) -> dict[str, Path]:
    (folder / BLOCKS_DIRECTORY).mkdir(exist_ok=True)
    return {name: folder / BLOCKS_DIRECTORY / f"{name}.safetensors" for name in plan.blocks}


def _quantize_uncalibrated_blocks(plan: Plan, files: Mapping[str, Path], progress: Progress) -> None:
    uncalibrated = [name for name in files if not any(needs_calibration(plan, tensor) for tensor in plan.blocks[name])]
    for name in progress(uncalibrated, "quantizing"):
        if not files[name].is_file():
            write_block(files[name], {tensor.name: quantize_weight(plan, tensor) for tensor in plan.blocks[name]})


def _same_request(finished: Manifest, requested: Manifest) -> bool:
    results = dict.fromkeys(("calibration_tokens", "method", "smoothing_exponent", "input_ranges"))
    weights = tuple(record.model_copy(update=results) for record in finished.weights)
    without_results = {"files": (), "weights": weights, "held_out_errors": None, "device": requested.device}
    return finished.model_copy(update=without_results) == requested


def _write_request(folder: Path, manifest: Manifest) -> None:
    file, request = folder / REQUEST_FILE, manifest.model_dump_json()
    if file.is_file() and file.read_text() != request:
        raise OutputError(
            f"`{folder}` has an unfinished run of another recipe, checkpoint, calibration set or device",
            "delete it to start over, or rerun with the original arguments to resume",
        )
    file.write_text(request)


def _finish(plan: Plan, folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Copy the checkpoint's small files and write the manifest with the results of calibration."""
    components: dict[str, list[str]] = {"model": copy_text_files(plan.checkpoint, folder)}
    if plan.checkpoint.code_files:
        components["code"] = copy_files(plan.checkpoint.code_files, folder)
    for name, file in files.items():
        components.setdefault(name.partition(".")[0], []).append(str(file.relative_to(folder)))
    results = {name: read_calibration_result(file) for name, file in files.items()}
    fields = {name: updates for result in results.values() for name, updates in result.weights.items()}
    weights = tuple(
        WeightRecord(**{**record.model_dump(), **fields.get(record.name, {})}) for record in manifest.weights
    )
    errors = {name: result.errors for name, result in results.items() if result.errors} or None
    write_manifest(folder, manifest.model_copy(update={"weights": weights, "held_out_errors": errors}), components)


def copy_text_files(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Copy configuration, tokenizer and processor files into a folder and return their names."""
    texts = sorted({file for pattern in HUB_PATTERNS[1:] for file in checkpoint.path.glob(pattern)})
    return copy_files([file for file in texts if not file.name.endswith(".index.json")], folder)


def copy_files(files: Sequence[Path], folder: Path) -> list[str]:
    """Copy files into a folder and return their names."""
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _manifest(plan: Plan, calibration: SampleSet | None, device: str | None) -> Manifest:
    checkpoint, calibrated = plan.checkpoint, plan.recipe.needs_calibration
    return Manifest(
        kind="quantized",
        family=checkpoint.family.name,
        source=SourceRecord.from_checkpoint(checkpoint),
        recipe=plan.recipe.to_dict(),
        calibration_set=CalibrationRecord.from_samples(calibration) if calibration and calibrated else None,
        device=device,
        versions=installed_versions((*ARTIFACT_PACKAGES, *(MODEL_PACKAGES if calibrated else ()))),
        weights=tuple(map(_record, plan.tensors)),
        notes=plan.notes,
    )


def _record(tensor: TensorPlan) -> WeightRecord:
    return WeightRecord(
        name=tensor.name,
        hub_name=tensor.spec.hub_name,
        shape=tensor.spec.shape,
        dtype=tensor.dtype,
        scheme=str(tensor.scheme) if tensor.scheme else None,
        reason=tensor.reason,
        nbytes=tensor.nbytes,
        activation=tensor.activation,
    )
