"""Resize a learned position table inside the vision graph, to the number of patches of each slice."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mcpmq.families.family import VisionShape
from mcpmq.families.timm_siglip import BICUBIC_INNER, BICUBIC_OUTER
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.weight_emitter import WeightEmitter

FLOAT = ir.DataType.FLOAT
KERNEL_SUPPORT = 2.0  # cells
Kernel = Callable[[Graph, ir.Value], ir.Value]  # weights at distances in cells


def position_embedding(
    graph: Graph,
    weights: WeightEmitter,
    shape: VisionShape,
    coordinates: tuple[ir.Value, ir.Value],
    sizes: ir.Value,
    kernel: Kernel,
) -> ir.Value:
    """Emit the position embedding of every patch, antialiased: float32 [slices, patches, hidden].

    `coordinates`: row and column of every patch, int64 [slices, patches] each; `sizes`: rows and columns of every
    slice, int64 [slices, 2]. One matrix product serves all slices: a patch has one row of weights over the table cells.
    """
    row, column = (
        _cell_weights(graph, shape.position_grid_size, index, sizes, axis, kernel)
        for axis, index in enumerate(coordinates)
    )
    product = graph.node("Mul", _unsqueezed(graph, row, 3), _unsqueezed(graph, column, 2))
    cell_weights = graph.node("Reshape", product, graph.constant([0, 0, shape.position_grid_size**2]))
    table = graph.node("Reshape", weights.array("vision.position_embedding"), graph.constant([-1, shape.hidden_size]))
    return graph.node("MatMul", cell_weights, table)


def _cell_weights(graph: Graph, cells: int, index: ir.Value, sizes: ir.Value, axis: int, kernel: Kernel) -> ir.Value:
    """Emit the weight of every table cell along an axis for every patch: [slices, patches, cells].

    In a slice with fewer patches than the table has cells the kernel is wider, so that every cell contributes.
    """
    length = graph.node("Cast", graph.node("Gather", sizes, graph.constant([axis]), axis=1), to=FLOAT)
    half, one = graph.constant(0.5, np.float32), graph.constant(1, np.float32)
    patch = graph.node("Div", graph.constant(cells, np.float32), length)
    center = graph.node("Mul", graph.node("Add", graph.node("Cast", index, to=FLOAT), half), patch)
    cell_centers = graph.constant(np.arange(cells) + 0.5, np.float32)
    distance = graph.node("Abs", graph.node("Sub", _unsqueezed(graph, center, 2), cell_centers))
    width = _unsqueezed(graph, graph.node("Max", patch, one), 2)
    height = kernel(graph, graph.node("Div", distance, width))
    return graph.node("Div", height, graph.node("ReduceSum", height, graph.constant([2])))


def linear(graph: Graph, distance: ir.Value) -> ir.Value:
    """Emit the triangle at non-negative distances."""
    one, zero = graph.constant(1, np.float32), graph.constant(0, np.float32)
    return graph.node("Max", graph.node("Sub", one, distance), zero)


def cubic(graph: Graph, distance: ir.Value) -> ir.Value:
    """Emit the cubic kernel at non-negative distances."""
    distance = graph.node("Min", distance, graph.constant(KERNEL_SUPPORT, np.float32))
    inner, outer = (_polynomial(graph, distance, coefficients) for coefficients in (BICUBIC_INNER, BICUBIC_OUTER))
    return graph.node("Where", graph.node("Less", distance, graph.constant(1, np.float32)), inner, outer)


def _polynomial(graph: Graph, value: ir.Value, coefficients: tuple[float, ...]) -> ir.Value:
    first, *others = (graph.constant(coefficient, np.float32) for coefficient in coefficients)
    total = first
    for coefficient in others:
        total = graph.node("Add", graph.node("Mul", total, value), coefficient)
    return total


def _unsqueezed(graph: Graph, value: ir.Value, axis: int) -> ir.Value:
    return graph.node("Unsqueeze", value, graph.constant([axis]))
