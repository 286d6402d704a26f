"""Layers that attend linearly (Gated DeltaNet) in a decoder's graph: a convolution and a state instead of a cache."""

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import LanguageShape, LinearAttention
from mcpmq.formats.onnx.graph import CONTRIBUTED, Axes, Graph
from mcpmq.formats.onnx.weight_source import Weights

FLOAT = ir.DataType.FLOAT
UNIT_EPSILON = 1e-6  # under the root where queries and keys are brought to length one
LEAST_RUNTIME = "1.26"  # the first ONNX Runtime with LinearAttention and CausalConvWithState
States = tuple[ir.Value, ir.Value]  # what the convolution has seen last, and the state


def state_inputs(graph: Graph, linear: LinearAttention, layer: int) -> States:
    """`past_conv.N` [batch, channels, kernel - 1] and `past_recurrent.N` [batch, value heads, key, value width]."""
    seen, state = (graph.input(f"past_{name}.{layer}", FLOAT, axes) for name, axes in _axes(linear))
    return seen, state


def state_outputs(graph: Graph, linear: LinearAttention, layer: int, states: States) -> None:
    """The same after this call, as `present_conv.N` and `present_recurrent.N`."""
    for value, (name, axes) in zip(states, _axes(linear), strict=True):
        graph.output(value, f"present_{name}.{layer}", FLOAT, axes)


def _axes(linear: LinearAttention) -> tuple[tuple[str, Axes], tuple[str, Axes]]:
    convolution: Axes = ["batch_size", linear.channels, linear.kernel - 1]
    return ("conv", convolution), (
        "recurrent",
        ["batch_size", linear.value_heads, linear.key_width, linear.value_width],
    )


def attend(
    graph: Graph, weights: Weights, shape: LanguageShape, name: str, value: ir.Value, states: States
) -> tuple[ir.Value, States]:
    """Normed hidden values [batch, sequence, hidden] -> what the layer adds, and the states after them."""
    linear = shape.linear
    assert linear is not None
    mixed = graph.node("Transpose", weights.linear(value, f"{name}.qkv"), perm=[0, 2, 1])
    kernel = weights.array(f"{name}.convolution")
    mixed, seen = graph.nodes(
        "CausalConvWithState", mixed, kernel, None, states[0], outputs=2, domain=CONTRIBUTED, activation="silu"
    )
    query, key, content = _split(graph, linear, graph.node("Transpose", mixed, perm=[0, 2, 1]))
    attended, state = graph.nodes(
        "LinearAttention",
        _unit(graph, linear, query),
        _unit(graph, linear, key),
        content,
        states[1],
        _decay(graph, weights, name, value),
        graph.node("Sigmoid", _gate(graph, weights, f"{name}.b", value)),
        outputs=2,
        domain=CONTRIBUTED,
        update_rule="gated_delta",
        q_num_heads=linear.key_heads,
        kv_num_heads=linear.value_heads,
        scale=linear.key_width**-0.5,
    )
    normed = _normed(graph, linear.value_width, attended, weights.vector(f"{name}.norm"), shape.norm_epsilon)
    gate = weights.linear(value, f"{name}.z")
    gated = graph.node("Mul", normed, graph.node("Mul", gate, graph.node("Sigmoid", gate)))
    return weights.linear(gated, f"{name}.o"), (seen, state)


def _split(graph: Graph, linear: LinearAttention, mixed: ir.Value) -> tuple[ir.Value, ...]:
    keys = linear.key_heads * linear.key_width
    sizes = graph.constant([keys, keys, linear.value_heads * linear.value_width])
    return graph.nodes("Split", mixed, sizes, outputs=3, axis=-1)


def _unit(graph: Graph, linear: LinearAttention, value: ir.Value) -> ir.Value:
    """Every head at length one: a norm by the root of the mean square, times the root of the width."""
    width = linear.key_width
    scale = graph.constant(np.full(width, width**-0.5), np.float32)
    return _normed(graph, width, value, scale, UNIT_EPSILON / width)


def _normed(graph: Graph, width: int, value: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
    """Every head of [batch, sequence, heads * width] normed by itself."""
    heads = graph.node("Reshape", value, graph.constant([0, 0, -1, width]))
    normed = graph.node("RMSNormalization", heads, scale, axis=-1, epsilon=epsilon)
    return graph.node("Reshape", normed, graph.constant([0, 0, -1]))


def _decay(graph: Graph, weights: Weights, name: str, value: ir.Value) -> ir.Value:
    """By how much every value head forgets, as a logarithm: [batch, sequence, value heads]."""
    step = graph.node("Add", _gate(graph, weights, f"{name}.a", value), weights.vector(f"{name}.time_step"))
    rate = graph.node("Neg", graph.node("Exp", weights.vector(f"{name}.decay")))
    return graph.node("Mul", graph.node("Softplus", step), rate)


def _gate(graph: Graph, weights: Weights, name: str, value: ir.Value) -> ir.Value:
    """A small matrix that nothing quantizes: [batch, sequence, value heads]."""
    return graph.node("MatMul", value, graph.node("Transpose", weights.array(name), perm=[1, 0]))
