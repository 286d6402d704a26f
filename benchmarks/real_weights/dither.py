"""Weights drawn from the intervals of their codes.

Weights that lie on a grid of few levels favor the grids that contain these levels. Every weight of a quantized GGUF
file is therefore drawn uniformly from the interval of values that its type rounds to its level ("dithered").
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import Q4_K
from numpy.typing import NDArray

Steps = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def dithered(
    values: NDArray[np.float32], data: NDArray[np.uint8], kind: GGMLQuantizationType, random: np.random.Generator
) -> NDArray[np.float32]:
    """Add uniform noise of one quantization step to dequantized `data` of a type of `STEPS`."""
    blocks = data.reshape(-1, GGML_QUANT_SIZES[kind][1])
    steps = STEPS[kind](blocks).reshape(-1, 1)
    noise = random.uniform(-0.5, 0.5, (len(steps), values.size // len(steps))).astype(np.float32)
    return values + (steps * noise).reshape(values.shape)


def _half(blocks: NDArray[np.uint8], start: int) -> NDArray[np.float32]:
    """Return the fp16 number at a byte of every block, float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _first_half(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _half(blocks, 0)


def _steps_of_q4_k(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    scales, _ = Q4_K.get_scale_min(blocks[:, 4:16])
    steps: NDArray[np.float32] = _half(blocks, 0) * scales.astype(np.float32)
    return steps


def _steps_of_q6_k(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)


# The step of every part of a block, from blocks [blocks, bytes].
STEPS: Mapping[Any, Steps] = {
    GGMLQuantizationType.Q4_1: _first_half,
    GGMLQuantizationType.Q5_0: _first_half,
    GGMLQuantizationType.Q8_0: _first_half,
    GGMLQuantizationType.Q4_K: _steps_of_q4_k,
    GGMLQuantizationType.Q6_K: _steps_of_q6_k,
}
