"""A learned table of positions, resized inside the vision graph to however many patches a slice has."""

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import VisionShape
from mcpmq.families.timm_siglip import FAR, NEAR
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_source import Weights

FLOAT = ir.DataType.FLOAT
REACH = 2.0  # cells


def position_embedding(
    graph: Graph, weights: Weights, shape: VisionShape, places: tuple[ir.Value, ir.Value], sizes: ir.Value
) -> ir.Value:
    """What every patch is told of its place, by row and column int64 [slices, patches] and rows and columns of all
    slices int64 [slices, 2]: bicubic and antialiased, float32 [slices, patches, hidden].

    One product for all: a patch is a row of shares that the cells of the table have in it.
    """
    row, column = (_shares(graph, shape.grid, place, sizes, axis) for axis, place in enumerate(places))
    both = graph.node("Mul", _unsqueezed(graph, row, 3), _unsqueezed(graph, column, 2))
    shares = graph.node("Reshape", both, graph.constant([0, 0, shape.grid**2]))
    table = weights.array("vision.position_embedding")
    return graph.node("MatMul", shares, graph.node("Squeeze", table, graph.constant([0])))


def _shares(graph: Graph, cells: int, place: ir.Value, sizes: ir.Value, axis: int) -> ir.Value:
    """What every cell along an axis has in every patch: [slices, patches, cells]; where a slice has fewer patches than
    the table has cells, a patch reaches further, so that no cell is passed over."""
    length = graph.node("Cast", graph.node("Gather", sizes, graph.constant([axis]), axis=1), to=FLOAT)
    half, one = graph.constant(0.5, np.float32), graph.constant(1, np.float32)
    patch = graph.node("Div", graph.constant(cells, np.float32), length)
    centre = graph.node("Mul", graph.node("Add", graph.node("Cast", place, to=FLOAT), half), patch)
    centres = graph.constant(np.arange(cells) + 0.5, np.float32)
    apart = graph.node("Abs", graph.node("Sub", _unsqueezed(graph, centre, 2), centres))
    stretch = _unsqueezed(graph, graph.node("Max", patch, one), 2)
    height = _cubic(graph, graph.node("Div", apart, stretch))
    return graph.node("Div", height, graph.node("ReduceSum", height, graph.constant([2])))


def _cubic(graph: Graph, distance: ir.Value) -> ir.Value:
    """Height of the cubic at distances that are not negative."""
    distance = graph.node("Min", distance, graph.constant(REACH, np.float32))
    near, far = (_polynomial(graph, distance, coefficients) for coefficients in (NEAR, FAR))
    return graph.node("Where", graph.node("Less", distance, graph.constant(1, np.float32)), near, far)


def _polynomial(graph: Graph, value: ir.Value, coefficients: tuple[float, ...]) -> ir.Value:
    first, *others = (graph.constant(coefficient, np.float32) for coefficient in coefficients)
    total = first
    for coefficient in others:
        total = graph.node("Add", graph.node("Mul", total, value), coefficient)
    return total


def _unsqueezed(graph: Graph, value: ir.Value, axis: int) -> ir.Value:
    return graph.node("Unsqueeze", value, graph.constant([axis]))
