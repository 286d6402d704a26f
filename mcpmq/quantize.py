"""Quantize a checkpoint: read and write one block at a time; an interrupted run resumes."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import torch

from mcpmq.artifact import (
    RESULT_FIELDS,
    Artifact,
    CalibrationRecord,
    Manifest,
    SourceRecord,
    WeightRecord,
    has_manifest,
    write_manifest,
)
from mcpmq.calibrate.cluster import ClusterOptions, calibrate_on_cluster
from mcpmq.calibrate.devices import calibrate_on_devices
from mcpmq.calibrate.expert_counts import expert_record
from mcpmq.calibrate.requirements import needs_calibration, require_calibration
from mcpmq.calibrate.sequential import calibrate_sequentially
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import OutputError
from mcpmq.estimate.resources import uncalibrated_peak_rss_bytes
from mcpmq.execution.device import CPU, device_name, resolve_devices
from mcpmq.execution.instruction_set import instruction_set
from mcpmq.families.encoding import check_samples
from mcpmq.formats.image_tokens import image_limits
from mcpmq.plan import Plan, TensorPlan
from mcpmq.quantized_model import BlockWriter, CalibrationResult, QuantizedModel, read_calibration_result
from mcpmq.rounding.block import quantize_to_nearest
from mcpmq.scheme import GgmlScheme
from mcpmq.system.background import begin
from mcpmq.system.environment import ARTIFACT_PACKAGES, MODEL_PACKAGES, installed_versions
from mcpmq.system.file_hash import file_sha256
from mcpmq.system.ggml_library import library_path
from mcpmq.system.output import atomic_dir, check_disk_space, check_folder, lock_output, remove_stale_lock
from mcpmq.system.progress import Notify, Progress, begin_stages, ignore_notice, silent
from mcpmq.system.table import format_megabytes
from mcpmq.unfinished_run import REQUEST_FILE, RunRequest, UnfinishedRun

COPIED_COMPONENTS = ("model", "code")  # files that are copied from the checkpoint


def quantize(
    plan: Plan,
    out: str | Path,
    calibration: SampleSet | None = None,
    progress: Progress = silent,
    device: str | None = None,
    notify: Notify = ignore_notice,
    memory_limit: int | None = None,
    cluster: ClusterOptions | None = None,
) -> QuantizedModel:
    """Carry out a plan and write the quantized model to `out`; a finished run of the same plan is returned.

    The weights of at most one block are in memory. If the recipe needs calibration, the calibration samples pass
    through the model block by block on `device`, or on the best available one, and their activations are in its memory;
    several devices, as in `resolve_devices`, share the samples.
    `notify` gets a warning before the work if the samples have too few tokens for the method.
    `memory_limit` is the largest resident memory of this process in bytes: hidden states go to a file where they would
    exceed it. With `cluster` the samples pass through the model on its nodes, with the bytes of a run on this CPU.

    Raises:
        DatasetError: the recipe needs a calibration set and none is given, a sample cannot be encoded, or a weight gets
            no input from the set; or the samples need more memory than the limit.
        DeviceError: the device is not available, or the process of one of several ended.
        OutputError: `out` exists, has an unfinished run of another request, the disk is full, or a weight needs more
            memory than the limit.
        CheckpointError: a file of the tokenizer or preprocessor is missing, or a weight is not finite.
        ScaleError: the scales of a scheme do not represent a weight.
        MissingExtra: the recipe uses ggml's own search of scales, and xllamacpp is not installed; or Ray is not.
        ClusterError: the cluster does not answer, or its workers died.
    """
    samples, out = require_calibration(plan, calibration), Path(out)
    check_folder(out, _inputs(plan, calibration))
    devices = resolve_devices(device, plan.checkpoint.nbytes) if samples and not cluster else (CPU,)
    with ExitStack() as stack:
        if not has_manifest(out):
            stack.enter_context(lock_output(out))
            check_disk_space(out, plan.nbytes)
        finish_request = begin(partial(_request, plan, calibration, devices))  # hashes the checkpoint
        if has_manifest(out) and (finished := _finished_run(out, finish_request())):
            remove_stale_lock(out)
            return finished
        begin_stage = begin_stages(progress, ["checking samples", "quantizing"] if samples else ["quantizing"])
        begin_stage()
        tokens = check_samples(plan.checkpoint.family.open_processor(plan.checkpoint.path), samples, progress)
        if calibration and plan.recipe.compensates_errors and (text := calibration.few_tokens_warning(tokens)):
            notify(text)
        check_search_library(plan)
        if samples:
            begin_stage()
        _check_limit(plan, memory_limit)
        calibrate = partial(calibrate_sequentially, device=devices[0])
        if len(devices) > 1:
            calibrate = partial(calibrate_on_devices, devices=devices)
        if cluster:
            calibrate = partial(calibrate_on_cluster, notify=notify, options=cluster)
        _run(plan, out, finish_request(), samples, progress, calibrate, memory_limit)
    return QuantizedModel.open(out)


def check_search_library(plan: Plan) -> None:
    """Check that ggml is installed if the recipe uses its own search of scales.

    Raises:
        MissingExtra: it is not.
    """
    if any(isinstance(tensor.scheme, GgmlScheme) and tensor.scheme.search == "ggml" for tensor in plan.tensors):
        library_path()


def _check_limit(plan: Plan, memory_limit: int | None) -> None:
    """Check the memory limit for weights that need no calibration; that of a calibration depends on its samples."""
    needed = uncalibrated_peak_rss_bytes(plan)
    if memory_limit is not None and needed > memory_limit:
        raise OutputError(
            f"quantizing needs about {format_megabytes(needed)} of memory, the limit is"
            f" {format_megabytes(memory_limit)}",
            "raise `--memory-limit`",
        )


def _inputs(plan: Plan, calibration: SampleSet | None) -> dict[Path, str]:
    return plan.checkpoint.folders | ({calibration.path: "calibration set"} if calibration else {})


def _run(
    plan: Plan,
    out: Path,
    request: RunRequest,
    samples: Sequence[Sample],
    progress: Progress,
    calibrate: Callable[..., None],
    memory_limit: int | None,
) -> None:
    with atomic_dir(out, resumable=True) as folder:
        run = UnfinishedRun.resume(folder, request)
        files = {name: run.block_file(name) for name in plan.blocks}
        _quantize_uncalibrated_blocks(plan, files, progress, run.write_block)
        if not all(file.is_file() for file in files.values()):
            calibrate(plan, samples, files, progress, write=run.write_block, memory_limit=memory_limit)
        run.check_blocks(_finish(plan, folder, request.manifest, files).files)
    (out / REQUEST_FILE).unlink()


def _quantize_uncalibrated_blocks(
    plan: Plan, files: Mapping[str, Path], progress: Progress, write: BlockWriter
) -> None:
    uncalibrated = [name for name in files if not any(needs_calibration(plan, tensor) for tensor in plan.blocks[name])]
    for name in progress(uncalibrated, "quantizing"):
        if not files[name].is_file():
            weights, records = quantize_to_nearest(plan, name)
            write(files[name], weights, CalibrationResult(records) if records else None)


def _finished_run(out: Path, request: RunRequest) -> QuantizedModel | None:
    """Return the quantized model in a folder if it is the verified result of this request.

    Raises:
        ArtifactError: its files changed.
    """
    artifact = Artifact.open(out)
    if not _is_result(artifact.manifest, request):
        return None
    artifact.verify()
    with suppress(OSError):  # of a run that was killed after it renamed the folder
        (out / REQUEST_FILE).unlink(missing_ok=True)
    return QuantizedModel.open(out)


def _is_result(finished: Manifest, request: RunRequest) -> bool:
    requested = request.manifest
    results = dict.fromkeys(RESULT_FIELDS)
    weights = tuple(record.model_copy(update=results) for record in finished.weights)
    machine = {"device": requested.device, "instruction_set": requested.instruction_set}
    without_results = {"files": (), "weights": weights, "held_out_errors": None, "experts": None, **machine}
    copied = {record.path: record.sha256 for record in finished.files if record.component in COPIED_COMPONENTS}
    return finished.model_copy(update=without_results) == requested and copied == request.copied_files


def _finish(plan: Plan, folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> Manifest:
    """Copy the checkpoint's small files and write the manifest with the results of calibration."""
    components = copy_checkpoint_files(plan.checkpoint, folder)
    for name, file in files.items():
        components.setdefault(name.partition(".")[0], []).append(str(file.relative_to(folder)))
    results = {name: read_calibration_result(file) for name, file in files.items()}
    fields = {name: updates for result in results.values() for name, updates in result.weights.items()}
    weights = tuple(
        WeightRecord(**{**record.model_dump(), **fields.get(record.name, {})}) for record in manifest.weights
    )
    errors = {name: result.errors for name, result in results.items() if result.errors} or None
    results_update = {"weights": weights, "held_out_errors": errors, "experts": expert_record(weights)}
    return write_manifest(folder, manifest.model_copy(update=results_update), components)


def copy_checkpoint_files(checkpoint: Checkpoint, folder: Path) -> dict[str, list[str]]:
    """Copy the small files of a checkpoint into a folder and return their names by component."""
    components = {"model": copy_text_files(checkpoint, folder)}
    if checkpoint.code_files:
        components["code"] = copy_files(checkpoint.code_files, folder)
    return components


def copy_text_files(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Copy configuration, tokenizer and processor files into a folder and return their names."""
    for file in checkpoint.text_files:
        file.copy(folder)
    return [file.name for file in checkpoint.text_files]


def copy_files(files: Sequence[Path], folder: Path) -> list[str]:
    """Copy files into a folder and return their names."""
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _request(plan: Plan, calibration: SampleSet | None, devices: Sequence[torch.device]) -> RunRequest:
    hashes = {file.name: file.sha256 for file in plan.checkpoint.text_files}
    hashes |= {file.name: file_sha256(file) for file in plan.checkpoint.code_files}
    return RunRequest(manifest=planned_manifest(plan, calibration, device_name(*devices)), copied_files=hashes)


def planned_manifest(plan: Plan, calibration: SampleSet | None = None, device: str | None = None) -> Manifest:
    """Return the manifest of a quantized model without files and results."""
    checkpoint, calibrated = plan.checkpoint, plan.recipe.needs_calibration
    return Manifest(
        kind="quantized",
        family=checkpoint.family.name,
        source=SourceRecord.from_checkpoint(checkpoint),
        recipe=plan.recipe.to_dict(),
        vocabulary=checkpoint.vocabulary,
        layers=checkpoint.layers,
        images=image_limits(checkpoint),
        calibration_set=CalibrationRecord.from_samples(calibration) if calibration and calibrated else None,
        device=device,
        instruction_set=instruction_set() if calibrated else None,
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
