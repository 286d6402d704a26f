"""The graph that looks tokens up: `input_ids` -> `inputs_embeds`."""

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_source import Weights
from mcpmq.system.progress import Progress


def emit(graph: Graph, weights: Weights, architecture: Architecture, progress: Progress) -> None:
    """int64 [batch, sequence] -> float32 [batch, sequence, hidden]; where features of images are stacked, behind those
    of each token zeros as wide as what they bring.
    """
    hidden, stacked = architecture.language.hidden, architecture.deepstack
    for name in progress(["embedding"], "writing the embedding"):
        tokens = graph.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        axes: list[int | str] = ["batch_size", "sequence_length", (1 + stacked) * hidden]
        embeddings = weights.lookup(name, tokens)
        if (scale := architecture.language.embedding_scale) != 1:
            embeddings = graph.node("Mul", embeddings, graph.constant(scale, np.float32))
        if stacked:
            embeddings = graph.node("Pad", embeddings, graph.constant([0, 0, 0, 0, 0, stacked * hidden]))
        graph.output(embeddings, "inputs_embeds", ir.DataType.FLOAT, axes)
