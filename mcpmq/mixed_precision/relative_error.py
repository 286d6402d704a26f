"""Estimate the loss of every weight on every scheme from an importance matrix, without a forward pass.

The error of a matrix is the change of its outputs relative to the outputs, for uncorrelated inputs of the measured mean
squares. An error in a layer reaches the residual stream through the last matrix of its branch, attention or MLP, and
counts by the share of that branch in the stream. Norms and later layers keep the ratio of an error to the stream to
first order, so the losses of all weights add up. Some rows of every matrix are read, and no block is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from mcpmq.calibrate.read_importance import InputImportance
from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import prefix_errors
from mcpmq.families.family import TensorSpec
from mcpmq.grids import quantize
from mcpmq.mixed_precision.layer_error import SAMPLED_ROWS, no_inputs_error, round_or_zero
from mcpmq.scheme import CodebookScheme, Scheme
from mcpmq.system.progress import Progress

# The modality of encoders and connectors, whose errors reach the answers through the tokens of images or audio.
ENCODER_MODALITIES = {"vision": "vision", "projector": "vision", "audio": "audio", "audio_projector": "audio"}


@dataclass(frozen=True, slots=True)
class OutputError:
    """The output of one weight and its errors.

    energy: mean square norm of the output of a token.
    errors: by scheme, as written in recipes: mean square of the change, relative to the energy; `keep` is 0.
    """

    energy: float
    errors: Mapping[str, float]


def importance_losses(
    checkpoint: Checkpoint,
    schemes: Mapping[str, Sequence[Scheme | None]],
    weight_errors: bool,
    importance: InputImportance,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Return the loss of each weight in `schemes` on each of its schemes: noise relative to the residual stream.

    `weight_errors` is whether grids are chosen by errors that the mean squares weight, as calibrated methods do.

    Raises:
        DatasetError: the importance matrix has no inputs of a matrix.
    """
    specs = [spec for spec in checkpoint.specs if spec.name in schemes]
    for spec in specs:
        if spec.role == "matrix" and spec.name not in importance.mean_squares:
            raise no_inputs_error(spec.name)
    measured = {
        spec.name: _output_error(
            checkpoint, spec, schemes[spec.name], weight_errors, importance.mean_squares.get(spec.name)
        )
        for spec in progress(specs, "measuring per-scheme error")
    }
    shares = stream_shares({name: one.energy for name, one in measured.items()})
    return {
        name: {scheme: _weight(name, importance) * shares[name] * error for scheme, error in one.errors.items()}
        for name, one in measured.items()
    }


def _weight(name: str, importance: InputImportance) -> float:
    modality = ENCODER_MODALITIES.get(name.partition(".")[0])
    return importance.token_shares[modality] if modality else 1.0


def stream_shares(energies: Mapping[str, float]) -> dict[str, float]:
    """Return the part of the residual stream, after its branch, that a weight's branch adds; 1 outside of layers.

    `energies` are those of all weights by common name, in the order of the forward pass. A branch is the part of the
    names in a layer before the first dot. The stream begins with the tables of its component, and branches are
    uncorrelated.
    """
    shares, streams = dict.fromkeys(energies, 1.0), {"language": energies.get("embedding", 0.0)}
    for (component, _, _), names in _branches(energies).items():
        tables = (energy for name, energy in energies.items() if name == f"{component}.position_embedding")
        before = streams.get(component, sum(tables))
        added = energies[names[-1]]
        streams[component] = before + added
        shares |= dict.fromkeys(names, added / (before + added) if added else 0.0)
    return shares


def _branches(names: Mapping[str, float]) -> dict[tuple[str, str, str], list[str]]:
    """Group the weights of layers by component, layer and branch, in their order."""
    branches: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        component, is_layer, rest = name.partition(".layers.")
        if is_layer:
            layer, branch, *_ = rest.split(".")
            branches.setdefault((component, layer, branch), []).append(name)
    return branches


def _output_error(
    checkpoint: Checkpoint,
    spec: TensorSpec,
    schemes: Sequence[Scheme | None],
    weight_errors: bool,
    mean_squares: Sequence[Tensor] | None,
) -> OutputError:
    parts = _sampled_rows(checkpoint, spec, len(mean_squares or [None]))
    weights = mean_squares or [parts[0].new_ones(parts[0].shape[1])]
    sampled = sum(map(len, parts))
    energy = sum(map(_energy, parts, weights))
    errors = {}
    for scheme in schemes:
        with prefix_errors(f"`{spec.name}`"):
            error = 0.0 if scheme is None else sum(map(partial(_error, scheme, weight_errors), parts, weights))
        errors[str(scheme or "keep")] = error / energy if energy else 0.0
    rows = 1 if spec.role == "table" else spec.shape[1 if spec.transposed else 0]  # a token looks up one row of a table
    return OutputError(energy * rows / sampled, errors)


def _sampled_rows(checkpoint: Checkpoint, spec: TensorSpec, parts: int) -> list[Tensor]:
    """Return evenly spread rows of each of the equal parts of a weight [out, in], float32."""
    if parts > 1:
        return [part[:: _step(len(part))].float() for part in checkpoint.load(spec).chunk(parts)]
    return [checkpoint.load_every(spec, _step(spec.shape[1 if spec.transposed else 0])).float()]


def _step(rows: int) -> int:
    return -(-rows // SAMPLED_ROWS)


def _energy(rows: Tensor, mean_square: Tensor) -> float:
    return float((rows.double().square() @ mean_square.double()).sum())


def _error(scheme: Scheme, weight_errors: bool, rows: Tensor, mean_square: Tensor) -> float:
    assert not isinstance(scheme, CodebookScheme), "formats with a single scheme have no candidates"
    weights = mean_square if weight_errors and mean_square.any() else None
    rounded = round_or_zero(rows, scheme, partial(quantize, importance=weights))
    return _energy(rounded - rows, mean_square)
