"""Searches for the scales of ggml's block types, compiled by numba: faster than those of ggml, with smaller errors.

Every search minimizes the sum of importance * (value - weight)^2 of its block. ggml weights errors also by the
magnitude of the weight, which makes the errors of outputs larger (benchmarks/layer_outputs.py). Both write
the layouts of ggml-common.h.
"""

import numpy as np
from numpy.typing import NDArray

from mcpmq.grids.vector_table import vector_table


def quantize_rows(
    name: str, values: NDArray[np.float32], importance: NDArray[np.float32], blocks: NDArray[np.uint8]
) -> None:
    """Quantize rows, float32 [rows, columns], into blocks, uint8 [rows, bytes of a row], without the interpreter lock.

    `importance`, float32 [columns], is positive with a mean near 1; all values are finite. The first call compiles the
    kernel, which takes some seconds, or loads it from the cache.
    """
    from mcpmq.grids.kernels import (
        iq3_s,
        iq4_xs,
        k_quants,
        q2_k,
        q3_k,
        q6_k,
        small_blocks,
    )  # numba takes a second to import

    match name:
        case "q4_k" | "q5_k":
            k_quants.quantize(values, importance, blocks, int(name[1]))
        case "q6_k":
            q6_k.quantize(values, importance, blocks)
        case "q2_k":
            q2_k.quantize(values, importance, blocks)
        case "q3_k":
            q3_k.quantize(values, importance, blocks)
        case "iq3_s":
            table = vector_table()
            iq3_s.quantize(values, importance, blocks, table.vectors, table.nearest)
        case "iq4_xs":
            iq4_xs.quantize(values, importance, blocks)
        case _:
            small_blocks.KERNELS[name](values, importance, blocks)
