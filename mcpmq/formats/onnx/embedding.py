"""The graph that looks tokens up: `input_ids` -> `inputs_embeds`."""

import numpy as np
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
        embeddings = weights.lookup(name, tokens)
        if (scale := architecture.language.embedding_scale) != 1:
            embeddings = graph.node("Mul", embeddings, graph.constant(scale, np.float32))
        graph.output(embeddings, "inputs_embeds", ir.DataType.FLOAT, axes)
