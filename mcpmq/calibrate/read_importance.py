"""Read an importance matrix that `mcpmq imatrix` wrote as statistics of the inputs of a checkpoint's matrices."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcpmq.artifact import Artifact
from mcpmq.calibrate.imatrix import component_specs, open_imatrix, read_matrices, tensor_names
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import ArtifactError
from mcpmq.families.family import TensorSpec
from mcpmq.formats.gguf.imatrix_file import ImatrixEntry
from mcpmq.formats.gguf.linear_attention import column_order
from mcpmq.formats.gguf.names import gguf_names

LANGUAGE_PREFIX = "language."


@dataclass(frozen=True, slots=True)
class InputImportance:
    """Mean squares of the inputs of matrices.

    mean_squares: float32 [columns] by common name; one for each equal part of a matrix's rows with its own inputs.
    token_shares: the parts of the language model's tokens that are image tokens, `vision`, and audio tokens, `audio`.
    source: the calibration set, for people.
    """

    mean_squares: Mapping[str, Sequence[Tensor]]
    token_shares: Mapping[str, float]
    source: str


def read_importance(folder: Path, checkpoint: Checkpoint) -> InputImportance:
    """Read an imatrix artifact of a checkpoint.

    Raises:
        ArtifactError: it is not an imatrix of this checkpoint, or its files are damaged.
    """
    artifact = open_imatrix(folder, checkpoint)
    calibration = artifact.manifest.calibration_set
    if calibration is None:
        raise ArtifactError(f"`{folder}` does not name its calibration set", "write it again with `mcpmq imatrix`")
    source = f"the importance matrix of {calibration.name}, SHA-256 {calibration.sha256}"
    return InputImportance(dict(_mean_squares(artifact, checkpoint)), _token_shares(artifact), source)


def _mean_squares(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[tuple[str, list[Tensor]]]:
    for part, names in tensor_names(checkpoint).items():
        entries = {name: entry for matrix in read_matrices([artifact], part) for name, entry in matrix.entries.items()}
        for spec in component_specs(checkpoint, part):
            found = [_own(spec, entries[name]) for name in gguf_names(spec.name, names) if name in entries]
            if found:
                order = column_order(spec, checkpoint.architecture.language)
                yield spec.name, [_mean_square(spec, entry, order) for entry in found]


def _own(spec: TensorSpec, entry: ImatrixEntry) -> ImatrixEntry:
    """Return the statistics of a matrix; an expert has a part of those of its tensor in the file."""
    _, is_expert, rest = spec.name.partition(".experts.")
    return entry.of_expert(int(rest.partition(".")[0])) if is_expert else entry


def _mean_square(spec: TensorSpec, entry: ImatrixEntry, order: Sequence[int]) -> Tensor:
    """Return the mean squares of the columns of the checkpoint, in its order and without padding."""
    columns = spec.shape[0 if spec.transposed else 1]
    values = torch.from_numpy(entry.square_sums[:columns].copy()) / max(1, entry.count)
    return values[torch.argsort(torch.tensor(order))] if order else values


def _token_shares(artifact: Artifact) -> dict[str, float]:
    """Return the shares of image and audio tokens in the first layer of the language model."""
    records = (one for one in artifact.manifest.weights if one.name.startswith(LANGUAGE_PREFIX))
    tokens = next((one.calibration_tokens for one in records if one.calibration_tokens), {})
    return {modality: tokens.get(modality, 0) / max(1, sum(tokens.values())) for modality in ("vision", "audio")}
