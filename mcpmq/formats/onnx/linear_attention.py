"""Linear attention layers (Gated DeltaNet) in a decoder graph: convolution and recurrent state, no KV cache."""

import numpy as np
import onnx_ir as ir

from mcpmq.families.language_shape import LanguageShape, LinearAttention
from mcpmq.formats.onnx.graph import CONTRIB_DOMAIN, Axes, Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter

FLOAT = ir.DataType.FLOAT
L2_NORM_EPSILON = 1e-6  # of the L2 norm of queries and keys
MIN_RUNTIME = "1.26"  # the first ONNX Runtime with LinearAttention and CausalConvWithState
LinearState = tuple[ir.Value, ir.Value]  # last inputs of the convolution, recurrent state


def state_inputs(graph: Graph, linear: LinearAttention, layer: int) -> LinearState:
    """Add `past_conv.N` [batch, channels, kernel - 1], `past_recurrent.N` [batch, value heads, key dim, value dim]."""
    inputs, state = (graph.input(f"past_{name}.{layer}", FLOAT, axes) for name, axes in _axes(linear))
    return inputs, state


def state_outputs(graph: Graph, linear: LinearAttention, layer: int, states: LinearState) -> None:
    """Add the updated states as `present_conv.N` and `present_recurrent.N`."""
    for value, (name, axes) in zip(states, _axes(linear), strict=True):
        graph.output(value, f"present_{name}.{layer}", FLOAT, axes)


def _axes(linear: LinearAttention) -> tuple[tuple[str, Axes], tuple[str, Axes]]:
    convolution: Axes = ["batch_size", linear.conv_channels, linear.conv_kernel_size - 1]
    return ("conv", convolution), (
        "recurrent",
        ["batch_size", linear.num_value_heads, linear.key_head_dim, linear.value_head_dim],
    )


def attend(
    graph: Graph, weights: WeightEmitter, shape: LanguageShape, name: str, value: ir.Value, states: LinearState
) -> tuple[ir.Value, LinearState]:
    """Emit normed hidden states [batch, sequence, hidden] -> the output of the layer and the updated states."""
    linear = shape.linear_attention
    assert linear is not None
    mixed, inputs = _convolve(graph, weights, name, value, states[0])
    query, key, content = _split(graph, linear, mixed)
    attended, state = graph.nodes(
        "LinearAttention",
        _l2_normed(graph, linear, query),
        _l2_normed(graph, linear, key),
        content,
        states[1],
        _decay(graph, weights, name, value),
        graph.node("Sigmoid", _gate(graph, weights, f"{name}.b", value)),
        outputs=2,
        domain=CONTRIB_DOMAIN,
        update_rule="gated_delta",
        q_num_heads=linear.num_key_heads,
        kv_num_heads=linear.num_value_heads,
        scale=linear.key_head_dim**-0.5,
    )
    normed = _normed(graph, linear.value_head_dim, attended, weights.vector(f"{name}.norm"), shape.norm_epsilon)
    gate = weights.linear(value, f"{name}.z")
    gated = graph.node("Mul", normed, graph.node("Mul", gate, graph.node("Sigmoid", gate)))
    return weights.linear(gated, f"{name}.o"), (inputs, state)


def _convolve(
    graph: Graph, weights: WeightEmitter, name: str, value: ir.Value, state: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Emit queries, keys and values [batch, sequence, channels] after the convolution, and its last inputs."""
    mixed = graph.node("Transpose", weights.linear(value, f"{name}.qkv"), perm=[0, 2, 1])
    kernel = weights.array(f"{name}.convolution")
    mixed, inputs = graph.nodes(
        "CausalConvWithState", mixed, kernel, None, state, outputs=2, domain=CONTRIB_DOMAIN, activation="silu"
    )
    return graph.node("Transpose", mixed, perm=[0, 2, 1]), inputs


def _split(graph: Graph, linear: LinearAttention, mixed: ir.Value) -> tuple[ir.Value, ...]:
    keys = linear.num_key_heads * linear.key_head_dim
    sizes = graph.constant([keys, keys, linear.num_value_heads * linear.value_head_dim])
    return graph.nodes("Split", mixed, sizes, outputs=3, axis=-1)


def _l2_normed(graph: Graph, linear: LinearAttention, value: ir.Value) -> ir.Value:
    """Normalize every head to length 1, by an RMS norm scaled with the root of head_dim."""
    width = linear.key_head_dim
    scale = graph.constant(np.full(width, width**-0.5), np.float32)
    return _normed(graph, width, value, scale, L2_NORM_EPSILON / width)


def _normed(graph: Graph, width: int, value: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
    """Normalize every head of [batch, sequence, heads * width]."""
    heads = graph.node("Reshape", value, graph.constant([0, 0, -1, width]))
    normed = graph.node("RMSNormalization", heads, scale, axis=-1, epsilon=epsilon)
    return graph.node("Reshape", normed, graph.constant([0, 0, -1]))


def _decay(graph: Graph, weights: WeightEmitter, name: str, value: ir.Value) -> ir.Value:
    """Emit the logarithm of the decay of every value head: [batch, sequence, value heads]."""
    step = graph.node("Add", _gate(graph, weights, f"{name}.a", value), weights.vector(f"{name}.time_step"))
    rate = graph.node("Neg", graph.node("Exp", weights.vector(f"{name}.decay")))
    return graph.node("Mul", graph.node("Softplus", step), rate)


def _gate(graph: Graph, weights: WeightEmitter, name: str, value: ir.Value) -> ir.Value:
    """Multiply by a small unquantized matrix: [batch, sequence, value heads]."""
    return graph.node("MatMul", value, graph.node("Transpose", weights.array(name), perm=[1, 0]))
