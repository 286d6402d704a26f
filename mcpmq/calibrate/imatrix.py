"""The importance matrix of a checkpoint, as llama-quantize takes it: the squares of what matrices see, by column."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from pathlib import Path

import torch
from torch import Tensor, nn

from mcpmq.artifact import (
    Artifact,
    CalibrationRecord,
    Manifest,
    SourceRecord,
    WeightRecord,
    appearing_whole,
    refuse_existing,
    write_manifest,
)
from mcpmq.calibrate.forward import (
    component_of,
    fed_by,
    is_head,
    labels_of,
    pass_samples,
    read_samples,
)
from mcpmq.calibrate.memory import refuse_what_does_not_fit
from mcpmq.calibrate.observers import Labels, count
from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet
from mcpmq.errors import ArtifactError, CalibrationError
from mcpmq.execution import torch_model
from mcpmq.execution.chunked_matmul import all_threads
from mcpmq.execution.device import choose, name_of, told
from mcpmq.execution.hooks import watching
from mcpmq.execution.layerwise import pass_by
from mcpmq.families.family import TensorSpec
from mcpmq.formats.gguf import language, mmproj
from mcpmq.formats.gguf.importance import Entry, ImportanceMatrix, widths_in
from mcpmq.formats.gguf.names import HYBRID_LANGUAGE, Names, names_of, source_name
from mcpmq.formats.gguf.names import LANGUAGE as LANGUAGE_NAMES
from mcpmq.rounding.stats import MODALITIES
from mcpmq.system.environment import installed_versions
from mcpmq.system.progress import Progress, silent

LANGUAGE, MMPROJ = "language", "vision+projector"  # the two files, as the GGUF export calls them
COMPONENTS = {LANGUAGE: language.COMPONENTS, MMPROJ: mmproj.COMPONENTS}
PREFIXES = {LANGUAGE: "", MMPROJ: "mmproj-"}
PACKAGES = ("mcpmq", "torch", "gguf", "transformers", "numpy", "pillow")
ADDED = "also summed over: "
SUM_NBYTES = 4  # of a column
ALIKE = dict.fromkeys(MODALITIES, 1.0)


@dataclass(frozen=True, slots=True)
class Squares:
    """What one matrix saw: the squares of its inputs by column, float32 [columns], and its tokens by modality."""

    sums: Tensor
    tokens: Mapping[str, int]


Seen = Mapping[str, tuple[Squares, ...]]  # by common name; three for a projection that is fed three ways


def imatrix(
    checkpoint: Checkpoint,
    samples: CalibrationSet,
    out: Path,
    added: Sequence[Path] = (),
    mmproj_file: Path | None = None,
    progress: Progress = silent,
    device: str | None = None,
) -> Artifact:
    """Write the importance of every column of every matrix: a file for the language model, and one for the mmproj file
    unless no sample has an image. Samples pass on the `device` of that name, or on the one that is chosen for them.

    What is in `added`, folders that were written for other sets, is added. Vision matrices are as wide as in
    `mmproj_file`, a GGUF file of theirs, or as in the checkpoint.

    Raises:
        ArtifactError: a folder in `added` is none of this checkpoint.
        FormatError: `mmproj_file` holds other matrices.
        CalibrationError: there is too little memory, or a matrix saw values that are not finite.
        OutputError: `out` exists.
    """
    refuse_existing(out)
    chosen = choose(device)
    names = _names(checkpoint)
    widths = {part: _columns(checkpoint, part, names[part]) for part in names}
    if mmproj_file:
        widths[MMPROJ] = widths_in(mmproj_file, widths.get(MMPROJ, {}))
    earlier = [_earlier(folder, checkpoint) for folder in added]
    summed = {part: [one.widened(widths[part]) for one in _read(earlier, part)] for part in names}
    seen = _see(checkpoint, samples, progress, chosen)
    with appearing_whole(out) as folder:
        listed = {}
        for part in names:
            matrix = _matrix(checkpoint, seen, part, names[part], samples).widened(widths[part])
            parts = [one for one in (matrix, *summed[part]) if one.entries]
            if parts:
                name = f"{PREFIXES[part]}{source_name(checkpoint.path.resolve().name)}-imatrix.gguf"
                reduce(add, parts).write(folder / name)
                listed[part] = [name]
        write_manifest(folder, _manifest(checkpoint, samples, seen, earlier, name_of(chosen)), listed)
    return Artifact.open(out)


def _see(checkpoint: Checkpoint, samples: CalibrationSet, progress: Progress, device: torch.device) -> Seen:
    """Let all samples pass once. Everything is watched at once: sums of squares are small."""
    processor = checkpoint.family.processor(checkpoint.path)
    inputs = read_samples(processor, samples.samples, progress)
    refuse_what_does_not_fit(checkpoint, inputs, device=device)
    model = torch_model.build(checkpoint.family, checkpoint.config, checkpoint.specs, device)
    ticks = iter(progress(list(model.blocks), told("summing up", device)))

    def load(block: nn.Module) -> None:
        next(ticks, None)
        if not is_head(model, block):
            model.fill(block, lambda spec: torch_model.floats_of(checkpoint.load(spec), spec))

    with ExitStack() as hooks, all_threads(device) as each, torch.inference_mode():
        found = {}
        for block, parameters in model.blocks.items():
            feeders = {name: fed_by(checkpoint.family, spec, name) for name, spec in _matrices(parameters)}
            new_sum = partial(_Sum.empty, labels_of(component_of(model, block), ALIKE, device))
            found[block] = hooks.enter_context(watching(block, feeders, new_sum))
        pass_samples(model, processor, inputs, each, load, pass_by)
    list(ticks)
    seen = {block: stats() for block, stats in found.items()}
    return {
        spec.name: seen[block][name]
        for block, parameters in model.blocks.items()
        for name, spec in _matrices(parameters)
        if name in seen[block]
    }


def _matrices(parameters: Mapping[str, TensorSpec]) -> Iterator[tuple[str, TensorSpec]]:
    return ((name, spec) for name, spec in parameters.items() if spec.role == "matrix")


@dataclass(slots=True)
class _Sum:
    """The squares of the inputs of one matrix as they come in; float64 loses nothing that counts."""

    labels: Labels
    sums: Tensor
    tokens: Counter[str] = field(default_factory=Counter)

    @classmethod
    def empty(cls, labels: Labels, columns: int) -> "_Sum":
        return cls(labels, torch.zeros(columns, dtype=torch.float64, device=labels.weights.device))

    def add(self, rows: Tensor) -> None:
        """Enter some inputs, float32 [tokens, columns]."""
        self.tokens.update(count(self.labels.of(len(rows))))
        self.sums += rows.square().sum(0, dtype=torch.float64)

    def stats(self) -> Squares:
        """What was summed up."""
        return Squares(self.sums.float().cpu(), {kind: self.tokens[kind] for kind in MODALITIES})


def _specs(checkpoint: Checkpoint, part: str) -> Iterator[TensorSpec]:
    return (spec for spec in checkpoint.specs if spec.role == "matrix" and spec.component in COMPONENTS[part])


def _names(checkpoint: Checkpoint) -> dict[str, Names]:
    """What llama.cpp calls the tensors of each file; one file where the model reads text only."""
    shape = checkpoint.architecture
    read = {LANGUAGE: HYBRID_LANGUAGE if shape.language.linear else LANGUAGE_NAMES}
    return read | ({MMPROJ: mmproj.TOWERS[shape.vision.kind].names} if shape.vision else {})


def _columns(checkpoint: Checkpoint, part: str, names: Names) -> dict[str, int]:
    """Columns of all matrices of a file, by llama.cpp's names."""
    return {
        name: spec.shape[0 if spec.transposed else 1]
        for spec in _specs(checkpoint, part)
        for name in names_of(spec.name, names)
    }


def _matrix(checkpoint: Checkpoint, seen: Seen, part: str, names: Names, samples: CalibrationSet) -> ImportanceMatrix:
    entries = {
        name: _entry(spec, squares)
        for spec in _specs(checkpoint, part)
        if spec.name in seen
        for name, squares in _shared_out(names_of(spec.name, names), seen[spec.name])
    }
    return ImportanceMatrix(entries, (samples.path.resolve().name,), len(samples))


def _shared_out(names: Sequence[str], seen: Sequence[Squares]) -> Iterator[tuple[str, Squares]]:
    """What the parts of a matrix saw: each something of its own, or all the same."""
    return zip(names, seen if len(seen) > 1 else [seen[0]] * len(names), strict=True)


def _entry(spec: TensorSpec, part: Squares) -> Entry:
    if not part.sums.isfinite().all():
        raise CalibrationError(
            f"`{spec.name}` saw values that are not finite", "the checkpoint overflows on a sample, or is damaged"
        )
    return Entry(part.sums.numpy(), sum(part.tokens.values()))


def _earlier(folder: Path, checkpoint: Checkpoint) -> Artifact:
    earlier = Artifact.open(folder)
    if earlier.manifest.kind != "imatrix" or earlier.manifest.source != SourceRecord.of(checkpoint):
        raise ArtifactError(
            f"`{folder}` is no importance matrix of `{checkpoint.path}`", "add what `mcpmq imatrix` made of the same"
        )
    earlier.verify()
    return earlier


def _read(earlier: Sequence[Artifact], part: str) -> Iterator[ImportanceMatrix]:
    return (ImportanceMatrix.read(file) for one in earlier for file in one.files_of(part))


def _manifest(
    checkpoint: Checkpoint, samples: CalibrationSet, seen: Seen, earlier: Sequence[Artifact], device: str | None
) -> Manifest:
    tokens = {name: Counter(parts[0].tokens) for name, parts in seen.items()}
    for one in earlier:
        for record in one.manifest.weights:
            tokens.setdefault(record.name, Counter()).update(record.tokens or {})
    specs = [spec for spec in checkpoint.specs if spec.name in tokens]
    unseen = [spec.name for spec in _specs(checkpoint, MMPROJ) if spec.name not in tokens]
    return Manifest(
        kind="imatrix",
        family=checkpoint.family.name,
        source=SourceRecord.of(checkpoint),
        recipe={"name": "none"},
        calibrated_on=CalibrationRecord.of(samples),
        device=device,
        versions=installed_versions(PACKAGES),
        weights=tuple(_record(checkpoint, spec, tokens[spec.name]) for spec in specs),
        notes=(*map(_added, earlier), *_unseen(unseen)),
    )


def _record(checkpoint: Checkpoint, spec: TensorSpec, tokens: Mapping[str, int]) -> WeightRecord:
    columns = spec.shape[0 if spec.transposed else 1]
    return WeightRecord(
        name=spec.name,
        hub_name=spec.hub_name,
        shape=spec.shape,
        dtype=checkpoint.entries[spec.name].torch_dtype,
        scheme="imatrix",
        reason="the squares of its inputs, summed by column",
        nbytes=SUM_NBYTES * columns,
        tokens={kind: tokens[kind] for kind in MODALITIES},
    )


def _added(earlier: Artifact) -> str:
    used, before = earlier.manifest.calibrated_on, [note for note in earlier.manifest.notes if note.startswith(ADDED)]
    assert used is not None
    here = f"{used.name} ({used.samples:,} samples, {used.with_image:,} with an image, sha256 {used.sha256})"
    return ", ".join((ADDED + here, *(note.removeprefix(ADDED) for note in before)))


def _unseen(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"no sample has an image: no mmproj file, for {len(names)} matrices saw nothing: {', '.join(names)}"
