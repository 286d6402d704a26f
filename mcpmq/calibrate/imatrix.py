"""Collect the importance matrix (imatrix) of a checkpoint for llama-quantize: squared inputs summed by column.

Audio encoders have entries as vision encoders do, those of MiniCPM-o under the names of `--gguf-audio glma`. Its
projector computes several frames side by side: their columns have the same sums.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn

from mcpmq.artifact import (
    Artifact,
    CalibrationRecord,
    Manifest,
    SourceRecord,
    WeightRecord,
    write_manifest,
)
from mcpmq.calibrate.forward import CalibrationRun, open_calibration, run_calibration
from mcpmq.calibrate.modalities import encoder_modality
from mcpmq.calibrate.requirements import nonfinite_error
from mcpmq.calibrate.square_sums import SquareSumObserver, SquareSums
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import SampleSet
from mcpmq.errors import ArtifactError
from mcpmq.execution.device import device_name, resolve_device
from mcpmq.execution.hooks import capture_inputs
from mcpmq.execution.instruction_set import instruction_set
from mcpmq.execution.layerwise import Replay
from mcpmq.families.family import TensorSpec
from mcpmq.formats.gguf import glma, language, mmproj
from mcpmq.formats.gguf.audio_encoder import AUDIO_PREFIXES
from mcpmq.formats.gguf.imatrix_file import ImatrixEntry, ImportanceMatrix, column_counts, stack_entries
from mcpmq.formats.gguf.linear_attention import column_order
from mcpmq.formats.gguf.names import (
    TensorNames,
    gguf_names,
    language_names,
    safe_file_name,
)
from mcpmq.rounding.stats import AUDIO, MODALITIES, VISION
from mcpmq.system.environment import installed_versions
from mcpmq.system.output import atomic_dir, check_output, lock_output
from mcpmq.system.progress import Progress, silent

LANGUAGE, MMPROJ = "language", "vision+projector"  # the two files, named as in the GGUF export
PREFIXES = {LANGUAGE: "", MMPROJ: "mmproj-"}
PACKAGES = ("mcpmq", "torch", "gguf", "transformers", "numpy", "pillow")
ADDED_NOTE = "also summed over: "
MEDIA = {VISION: "an image", AUDIO: "audio"}
SUM_NBYTES = 4  # per column
EQUAL_WEIGHTS = dict.fromkeys(MODALITIES, 1.0)


MatrixSums = Mapping[str, tuple[SquareSums, ...]]  # by common name; three for a packed query-key-value projection


def write_imatrix(
    checkpoint: Checkpoint,
    samples: SampleSet,
    out: Path,
    previous: Sequence[Path] = (),
    mmproj_file: Path | None = None,
    progress: Progress = silent,
    device: str | None = None,
) -> Artifact:
    """Write imatrix files: one for the language model, and one for the mmproj file if a sample has an image or audio.

    `previous` are imatrix artifacts of other calibration sets, whose sums are added. Columns of vision matrices are
    padded to those of `mmproj_file`, a GGUF file, which may have no audio encoder. `device` is as in `resolve_device`.

    Raises:
        ArtifactError: an artifact in `previous` is not an imatrix of this checkpoint.
        FormatError: `mmproj_file` has other matrices.
        DatasetError: there is too little memory, or inputs of a matrix are not finite.
        DeviceError: the device is not available.
        OutputError: `out` exists.
    """
    inputs = checkpoint.folders | {samples.path: "calibration set"}
    check_output(out, inputs | dict.fromkeys(previous, "importance matrix"))
    torch_device = resolve_device(device, checkpoint.nbytes)
    names = tensor_names(checkpoint)
    columns = {part: _columns(checkpoint, part, names[part]) for part in names}
    if mmproj_file:
        columns[MMPROJ] = column_counts(mmproj_file, columns.get(MMPROJ, {}), AUDIO_PREFIXES)
    with lock_output(out):
        artifacts = [open_imatrix(folder, checkpoint) for folder in previous]
        added = {part: [matrix.padded(columns[part]) for matrix in read_matrices(artifacts, part)] for part in names}
        sums = _collect_sums(checkpoint, samples, progress, torch_device)
        with atomic_dir(out) as folder:
            files = {}
            for part in names:
                matrix = _importance_matrix(checkpoint, sums, part, names[part], samples).padded(columns[part])
                matrices = [one.completed(columns[part]) for one in (matrix, *added[part]) if one.entries]
                if matrices:
                    name = f"{PREFIXES[part]}{safe_file_name(checkpoint.merged_name)}-imatrix.gguf"
                    reduce(add, matrices).observed().write(folder / name)
                    files[part] = [name]
            write_manifest(folder, _manifest(checkpoint, samples, sums, artifacts, device_name(torch_device)), files)
    return Artifact.open(out)


def _collect_sums(
    checkpoint: Checkpoint, samples: SampleSet, progress: Progress, device: torch.device
) -> dict[str, tuple[SquareSums, ...]]:
    """Sum the squared inputs of all matrices in one pass."""
    with open_calibration(checkpoint, samples.samples, progress, device) as run, ExitStack() as hooks:
        visitor = _SquareSumVisitor.create(run, hooks)
        run_calibration(run, visitor, "collecting imatrix")
    return visitor.result()


@dataclass(frozen=True, slots=True)
class _SquareSumVisitor:
    """Calibration visitor that only loads blocks: hooks on all blocks observe the pass itself, without a replay."""

    run: CalibrationRun
    results: Mapping[nn.Module, Callable[[], dict[str, tuple[SquareSums, ...]]]]  # by block; by name in the block

    @classmethod
    def create(cls, run: CalibrationRun, hooks: ExitStack) -> Self:
        """Register hooks on the matrices of all blocks, to be removed with the stack."""
        results = {}
        for block, specs in run.model.blocks.items():
            observer = partial(SquareSumObserver.create, run.modalities(block, EQUAL_WEIGHTS), run.model.device)
            parameters = run.input_modules(_matrices(specs))
            results[block] = hooks.enter_context(capture_inputs(block, parameters, observer))
        return cls(run, results)

    def load(self, block: nn.Module) -> None:
        """Load the original weights."""
        self.run.load_original(block)

    def visit(self, block: nn.Module, replay: Replay) -> None:
        """Do nothing."""

    def result(self) -> dict[str, tuple[SquareSums, ...]]:
        """Return the sums of all matrices that received inputs, by common name."""
        sums = {block: result() for block, result in self.results.items()}
        return {
            spec.name: sums[block][name]
            for block, specs in self.run.model.blocks.items()
            for name, spec in _matrices(specs).items()
            if name in sums[block]
        }


def _matrices(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {name: spec for name, spec in specs.items() if spec.role == "matrix"}


def component_specs(checkpoint: Checkpoint, part: str) -> Iterator[TensorSpec]:
    """Yield the matrices of a file."""
    tower, components = mmproj.largest_tower(checkpoint.architecture), frozenset(language.COMPONENTS)
    if part == MMPROJ:
        components = tower.components if tower else frozenset()
    return (spec for spec in checkpoint.specs if spec.role == "matrix" and spec.component in components)


def tensor_names(checkpoint: Checkpoint) -> dict[str, TensorNames]:
    """Return llama.cpp's tensor names for each file; a text-only model has no mmproj file."""
    architecture = checkpoint.architecture
    names = {LANGUAGE: language_names(architecture.language)}
    tower = mmproj.largest_tower(architecture)
    return names | ({MMPROJ: tower.names} if tower else {})


def _columns(checkpoint: Checkpoint, part: str, names: TensorNames) -> dict[str, int]:
    """Return the columns of all matrices of a file, by llama.cpp's names."""
    return {
        name: spec.shape[0 if spec.transposed else 1] * _copies(checkpoint, spec)
        for spec in component_specs(checkpoint, part)
        for name in gguf_names(spec.name, names)
    }


def _copies(checkpoint: Checkpoint, spec: TensorSpec) -> int:
    """Return how often the columns of a matrix are in that of the file."""
    return glma.stacked_frames(checkpoint.architecture, spec.name) if spec.component == "audio_projector" else 1


def _importance_matrix(
    checkpoint: Checkpoint, sums: MatrixSums, part: str, names: TensorNames, samples: SampleSet
) -> ImportanceMatrix:
    found: dict[str, list[ImatrixEntry]] = {}
    for spec in component_specs(checkpoint, part):
        order = column_order(spec, checkpoint.architecture.language)
        for name, one in _split(gguf_names(spec.name, names), sums.get(spec.name) or [SquareSums.zero(spec)]):
            found.setdefault(name, []).append(_entry(spec, one, order, _copies(checkpoint, spec)))
    entries = {name: stack_entries(parts) for name, parts in found.items() if any(part.count for part in parts)}
    return ImportanceMatrix(entries, (samples.name,), len(samples))


def _split(names: Sequence[str], sums: Sequence[SquareSums]) -> Iterator[tuple[str, SquareSums]]:
    """Pair GGUF tensors with sums: one each, or the same sums for all if they share their inputs."""
    return zip(names, sums if len(sums) > 1 else [sums[0]] * len(names), strict=True)


def _entry(spec: TensorSpec, sums: SquareSums, order: Sequence[int], copies: int) -> ImatrixEntry:
    """Return the statistics of a matrix; `order` has its columns in the order of the file, or nothing."""
    if not sums.sums.isfinite().all():
        raise nonfinite_error(spec.name)
    values = sums.sums.numpy()
    return ImatrixEntry(np.tile(values[list(order)] if order else values, copies), sum(sums.token_counts.values()))


def open_imatrix(folder: Path, checkpoint: Checkpoint) -> Artifact:
    """Open an importance matrix of a checkpoint.

    Raises:
        ArtifactError: it is another artifact, or its files are damaged.
    """
    artifact = Artifact.open(folder)
    if artifact.manifest.kind != "imatrix" or artifact.manifest.source != SourceRecord.from_checkpoint(checkpoint):
        raise ArtifactError(
            f"`{folder}` is not an importance matrix of `{checkpoint.path}`",
            "give an artifact that `mcpmq imatrix` wrote for the same checkpoint",
        )
    artifact.verify()
    return artifact


def read_matrices(artifacts: Sequence[Artifact], part: str) -> Iterator[ImportanceMatrix]:
    """Yield the matrices of one file of artifacts."""
    return (ImportanceMatrix.read(file) for artifact in artifacts for file in artifact.component_files(part))


def _manifest(
    checkpoint: Checkpoint, samples: SampleSet, sums: MatrixSums, previous: Sequence[Artifact], device: str | None
) -> Manifest:
    tokens = {name: Counter(parts[0].token_counts) for name, parts in sums.items()}
    for artifact in previous:
        for record in artifact.manifest.weights:
            tokens.setdefault(record.name, Counter()).update(record.calibration_tokens or {})
    specs = [spec for spec in checkpoint.specs if spec.name in tokens]
    return Manifest(
        kind="imatrix",
        family=checkpoint.family.name,
        source=SourceRecord.from_checkpoint(checkpoint),
        recipe={"name": "none"},
        calibration_set=CalibrationRecord.from_samples(samples),
        device=device,
        instruction_set=instruction_set(),
        versions=installed_versions(PACKAGES),
        weights=tuple(_record(checkpoint, spec, tokens[spec.name]) for spec in specs),
        notes=(*map(_added_note, previous), *_missing_note(list(component_specs(checkpoint, MMPROJ)), tokens)),
    )


def _record(checkpoint: Checkpoint, spec: TensorSpec, tokens: Mapping[str, int]) -> WeightRecord:
    columns = spec.shape[0 if spec.transposed else 1]
    return WeightRecord(
        name=spec.name,
        hub_name=spec.hub_name,
        shape=spec.shape,
        dtype=checkpoint.dtype(spec),
        scheme="imatrix",
        reason="squared inputs summed by column",
        nbytes=SUM_NBYTES * columns,
        calibration_tokens={name: tokens[name] for name in MODALITIES},
    )


def _added_note(artifact: Artifact) -> str:
    record = artifact.manifest.calibration_set
    earlier = [note for note in artifact.manifest.notes if note.startswith(ADDED_NOTE)]
    assert record is not None
    here = f"{record.name} ({record.samples:,} samples, {record.with_image:,} with an image, sha256 {record.sha256})"
    return ", ".join((ADDED_NOTE + here, *(note.removeprefix(ADDED_NOTE) for note in earlier)))


def _missing_note(specs: Sequence[TensorSpec], tokens: Collection[str]) -> Iterator[str]:
    """Yield a note about matrices of the mmproj file without inputs; `tokens` has the names of those with inputs."""
    missing = [spec for spec in specs if spec.name not in tokens]
    if missing:
        modalities = {encoder_modality(spec.component) for spec in missing}
        media = " or ".join(text for modality, text in MEDIA.items() if modality in modalities)
        is_written = len(missing) < len(specs)
        found = "the mmproj file has no entries of some matrices" if is_written else "no mmproj file was written"
        names = ", ".join(spec.name for spec in missing)
        yield f"{found} because no sample has {media}; {len(missing)} matrices: {names}"
