"""Emit the embedding graph: `input_ids` -> `inputs_embeds`."""

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import Architecture
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter
from mcpmq.system.progress import Progress


def emit(graph: Graph, weights: WeightEmitter, architecture: Architecture, progress: Progress) -> None:
    """Emit int64 [batch, sequence] -> float32 [batch, sequence, hidden].

    With deepstack layers every embedding is padded with one vector of zeros per layer, for the image features.
    """
    hidden_size, deepstack = architecture.language.hidden_size, architecture.num_deepstack_layers
    for name in progress(["embedding"], "writing the embedding"):
        tokens = graph.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        axes: list[int | str] = ["batch_size", "sequence_length", (1 + deepstack) * hidden_size]
        embeddings = weights.lookup(name, tokens)
        if (scale := architecture.language.embedding_scale) != 1:
            embeddings = graph.node("Mul", embeddings, graph.constant(scale, np.float32))
        if deepstack:
            embeddings = graph.node("Pad", embeddings, graph.constant([0, 0, 0, 0, 0, deepstack * hidden_size]))
        graph.output(embeddings, "inputs_embeds", ir.DataType.FLOAT, axes)
