"""Bits and errors of every block: from the manifest, or from quantized weights that lie beside the artifact."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mcpmq.artifact import MANIFEST, Artifact, WeightRecord
from mcpmq.checkpoint import Checkpoint
from mcpmq.plan import block_of
from mcpmq.report.report import BlockFacts, LayerPicture

if TYPE_CHECKING:  # a report is read without torch
    from mcpmq.quantized_model import Quantized

QUANTIZED = "quantized"  # the folder beside the artifact that it was exported from


def layer_picture(checkpoint: Checkpoint, artifact: Artifact) -> LayerPicture:
    """Relative errors of outputs if calibration measured them, of weights if these can be compared, else none."""
    blocks: dict[str, list[WeightRecord]] = {}
    for record in artifact.manifest.weights:
        blocks.setdefault(block_of(record.name), []).append(record)
    measured = artifact.manifest.held_out_errors
    codes = None if measured else _codes_of(artifact)
    if measured:
        errors = {name: math.sqrt(min(ways.values())) for name, ways in measured.items()}
    else:
        errors = _weight_errors(checkpoint, codes, blocks) if codes else {}
    facts = [BlockFacts(name=name, bits_per_weight=_bits(own), error=errors.get(name)) for name, own in blocks.items()]
    return LayerPicture(errors_of="outputs" if measured else "weights" if codes else None, blocks=tuple(facts))


def _bits(records: list[WeightRecord]) -> float:
    return round(8 * sum(one.nbytes for one in records) / sum(math.prod(one.shape) for one in records), 4)


def _codes_of(artifact: Artifact) -> "Quantized | None":
    from mcpmq.quantized_model import Quantized

    folder = artifact.path if artifact.manifest.kind == QUANTIZED else artifact.path.absolute().parent / QUANTIZED
    if not (folder / MANIFEST).is_file():
        return None
    found = Quantized.open(folder)
    same = (found.artifact.manifest.source, found.artifact.manifest.recipe) == (
        artifact.manifest.source,
        artifact.manifest.recipe,
    )
    # Where scales were moved between layers the weights are others, and their outputs the same.
    moved = any(record.smooth is not None for record in found.artifact.manifest.weights)
    return found if same and not moved else None


def _weight_errors(
    checkpoint: Checkpoint, codes: "Quantized", blocks: Mapping[str, list[WeightRecord]]
) -> dict[str, float]:
    import torch

    from mcpmq.execution.torch_model import floats_of

    specs = {spec.name: spec for spec in checkpoint.specs}
    errors = {}
    for block, records in blocks.items():
        lost = whole = 0.0
        for record in records:
            spec = specs[record.name]
            before, after = floats_of(checkpoint.load(spec), spec), floats_of(codes.load(record.name), spec)
            lost += float((after - before).square().sum(dtype=torch.float64))
            whole += float(before.square().sum(dtype=torch.float64))
        errors[block] = math.sqrt(lost / whole) if whole else 0.0
    return errors
