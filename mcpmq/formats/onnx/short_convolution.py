"""Short convolution layers (LFM2) in a decoder graph: a gated causal convolution with its last inputs as the state."""

import onnx_ir as ir

from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats.onnx.graph import CONTRIB_DOMAIN, Axes, Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter

FLOAT = ir.DataType.FLOAT
MIN_RUNTIME = "1.26"  # the first ONNX Runtime with CausalConvWithState
ConvolutionState = tuple[ir.Value]  # last inputs of the convolution


def state_inputs(graph: Graph, shape: LanguageShape, layer: int) -> ConvolutionState:
    """Add `past_conv.N` [batch, hidden, kernel - 1]."""
    return (graph.input(f"past_conv.{layer}", FLOAT, _axes(shape)),)


def state_outputs(graph: Graph, shape: LanguageShape, layer: int, states: tuple[ir.Value, ...]) -> None:
    """Add the updated state as `present_conv.N`."""
    graph.output(states[0], f"present_conv.{layer}", FLOAT, _axes(shape))


def _axes(shape: LanguageShape) -> Axes:
    assert shape.short_convolution is not None
    return ["batch_size", shape.hidden_size, shape.short_convolution.kernel_size - 1]


def convolve(
    graph: Graph, weights: WeightEmitter, name: str, value: ir.Value, states: tuple[ir.Value, ...]
) -> tuple[ir.Value, ConvolutionState]:
    """Emit normed hidden states [batch, sequence, hidden] -> the output of the layer and the updated state."""
    parts = graph.nodes("Split", weights.linear(value, f"{name}.in"), outputs=3, axis=-1, num_outputs=3)
    inputs = graph.node("Transpose", graph.node("Mul", parts[0], parts[2]), perm=[0, 2, 1])
    kernel = weights.array(f"{name}.kernel")
    mixed, state = graph.nodes(
        "CausalConvWithState", inputs, kernel, None, states[0], outputs=2, domain=CONTRIB_DOMAIN, activation="none"
    )
    gated = graph.node("Mul", parts[1], graph.node("Transpose", mixed, perm=[0, 2, 1]))
    return weights.linear(gated, f"{name}.out"), (state,)
