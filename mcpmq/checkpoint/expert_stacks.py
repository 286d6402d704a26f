"""Stacks with one matrix of every expert of a layer, as checkpoints store them, read as single matrices."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from mcpmq.errors import CheckpointError
from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape
from mcpmq.system.safetensors_file import TensorEntry, TransposedPart

STACK = re.compile(r"^(.*\.mlp\.experts)\.(gate_up_proj|down_proj)$")
MATRICES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}  # of an expert, one above the other


def unstack_experts(
    stored: Mapping[str, TensorEntry], shape: LanguageShape, copied: Collection[TensorSpec]
) -> dict[str, TensorEntry]:
    """Return the stored tensors with a matrix of its own for every expert in the place of stacks.

    A stack is [experts, out, in], or [experts, in, out] in published files of Qwen3-VL; transformers, too, decides by
    the shape. `copied` are the tensors that are copied unchanged.

    Raises:
        CheckpointError: a stack has another shape.
    """
    unchanged, entries = {spec.hub_name for spec in copied}, dict[str, TensorEntry]()
    for name, entry in stored.items():
        found = STACK.match(name) if shape.experts and name not in unchanged else None
        entries |= dict(_matrices(found[1], found[2], entry, shape)) if found else {name: entry}
    return entries


def _matrices(prefix: str, kind: str, entry: TensorEntry, shape: LanguageShape) -> Iterator[tuple[str, TensorEntry]]:
    """Yield the matrices of a stack with their names."""
    assert shape.experts
    inner, names = shape.experts.intermediate_size, MATRICES[kind]
    size = (inner, shape.hidden_size) if kind == "gate_up_proj" else (shape.hidden_size, inner)
    rows, columns = len(names) * size[0], size[1]
    if entry.shape not in {(shape.experts.count, rows, columns), (shape.experts.count, columns, rows)}:
        raise CheckpointError(
            f"`{prefix}.{kind}` has shape {list(entry.shape)}, config.json requires"
            f" {[shape.experts.count, rows, columns]}",
            "the weights and the configuration belong to different models",
        )
    transposed = entry.shape[1:] != (rows, columns)
    nbytes = entry.nbytes // shape.experts.count  # of an expert
    for expert in range(shape.experts.count):
        matrix = replace(entry, shape=size, offset=entry.offset + expert * nbytes, nbytes=nbytes // len(names))
        for number, name in enumerate(names):
            yield f"{prefix}.{expert}.{name}.weight", _part(matrix, number, rows if transposed else 0)


def _part(matrix: TensorEntry, number: int, matrix_columns: int) -> TensorEntry:
    """Return the part with this number; `matrix_columns` are those of a transposed matrix, else 0."""
    if matrix_columns:
        return replace(matrix, transposed=TransposedPart(matrix_columns, number * matrix.shape[0]))
    return replace(matrix, offset=matrix.offset + number * matrix.nbytes)
