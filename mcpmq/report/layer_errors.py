"""Bits per weight and quantization error of every block."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mcpmq.artifact import MANIFEST, Artifact, WeightRecord
from mcpmq.checkpoint import TOKEN_TABLES, Checkpoint
from mcpmq.families.blocks import block_name
from mcpmq.report.report import BlockInfo, LayerErrors

if TYPE_CHECKING:  # reading a report imports no torch
    from mcpmq.quantized_model import QuantizedModel

QUANTIZED_FOLDER = "quantized"  # next to the artifacts that were exported from it


def layer_errors(checkpoint: Checkpoint, artifact: Artifact) -> LayerErrors:
    """Return bits and errors of all blocks.

    Errors are those of outputs if calibration measured them, those of weights if the quantized model is next to the
    artifact, and unknown otherwise.
    """
    blocks: dict[str, list[WeightRecord]] = {}
    for record in artifact.manifest.weights:
        blocks.setdefault(block_name(record.name), []).append(record)
    held_out = artifact.manifest.held_out_errors
    quantized = None if held_out else _find_quantized_model(artifact)
    if held_out:
        errors = {name: math.sqrt(min(by_method.values())) for name, by_method in held_out.items()}
    else:
        errors = _weight_errors(checkpoint, quantized, blocks) if quantized else {}
    infos = [
        BlockInfo(name=name, bits_per_weight=_bits(records), error=errors.get(name)) for name, records in blocks.items()
    ]
    return LayerErrors(error_basis="outputs" if held_out else "weights" if quantized else None, blocks=tuple(infos))


def _bits(records: list[WeightRecord]) -> float:
    return round(8 * sum(record.nbytes for record in records) / sum(math.prod(record.shape) for record in records), 4)


def _find_quantized_model(artifact: Artifact) -> "QuantizedModel | None":
    """Return the quantized model of an artifact, unless scales changed its weights."""
    parent, theirs = artifact.path.absolute().parent, artifact.manifest
    names = (QUANTIZED_FOLDER, f"{QUANTIZED_FOLDER}-{theirs.recipe.get('name')}")
    folders = [artifact.path] if theirs.kind == "quantized" else [parent / name for name in names]
    folder = next((folder for folder in folders if (folder / MANIFEST).is_file()), None)
    if folder is None:
        return None
    from mcpmq.quantized_model import (
        QuantizedModel,  # imports torch, which a report without such a folder does not need
    )

    quantized = QuantizedModel.open(folder)
    ours = quantized.artifact.manifest
    decided = [(one.source, one.recipe, one.vocabulary, one.images, one.layers) for one in (ours, theirs)]
    same = decided[0] == decided[1]
    # Scaled weights differ from the original, although their outputs are equal.
    scaled = any(
        (record.smoothing_exponent, record.row_exponents, record.column_exponents) != (None, None, None)
        for record in ours.weights
    )
    return quantized if same and not scaled else None


def _weight_errors(
    checkpoint: Checkpoint, quantized: "QuantizedModel", blocks: Mapping[str, list[WeightRecord]]
) -> dict[str, float]:
    """Return the relative root-mean-square error of the weights of every block."""
    import torch

    from mcpmq.compression import remove_layers
    from mcpmq.execution.torch_model import to_float

    with remove_layers(checkpoint, quantized.artifact.manifest.layers) as view:
        checkpoint = view  # only files of texts are temporary
    specs, kept = {spec.name: spec for spec in checkpoint.specs}, quantized.artifact.manifest.vocabulary
    errors = {}
    for block, records in blocks.items():
        error = total = 0.0
        for record in records:
            spec, stored = specs[record.name], checkpoint.load(specs[record.name])
            if kept and record.name in TOKEN_TABLES:
                stored = stored[kept.ids]
            before, after = to_float(stored, spec), to_float(quantized.load(record.name), spec)
            error += float((after - before).square().sum(dtype=torch.float64))
            total += float(before.square().sum(dtype=torch.float64))
        errors[block] = math.sqrt(error / total) if total else 0.0
    return errors
