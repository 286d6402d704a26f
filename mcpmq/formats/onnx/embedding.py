"""The graph that looks tokens up: `input_ids` -> `inputs_embeds`."""

import onnx_ir as ir

from mcpmq.families.family import Architecture
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.operands import Weights
from mcpmq.progress import Progress


def emit(graph: Graph, weights: Weights, architecture: Architecture, progress: Progress) -> None:
    """int64 [batch, sequence] -> float32 [batch, sequence, hidden]."""
    for name in progress(["embedding"], "writing the embedding"):
        tokens = graph.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        axes: list[int | str] = ["batch_size", "sequence_length", architecture.language.hidden]
        graph.output(weights.lookup(name, tokens), "inputs_embeds", ir.DataType.FLOAT, axes)
