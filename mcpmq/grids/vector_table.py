"""The table of `iq3_s`: magnitudes that four consecutive columns have together, at a scale of 1.

It is a constant of the format, which gguf-py has. A code is one of 16 values of a single column: the odd integers from
-15 to 15.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from gguf.quants import IQ3_S
from numpy.typing import NDArray

COLUMNS, MAGNITUDES = 4, 8  # of a vector; odd integers from 1 to 15
VALUES = tuple(range(-15, 16, 2))  # of the codes
FIRST_POSITIVE = np.uint8(8)  # code
PLACES = MAGNITUDES ** np.arange(COLUMNS)


@dataclass(frozen=True, slots=True)
class VectorTable:
    """The vectors of `iq3_s` and their lookup.

    A key is a vector of magnitudes as a number with the digits (magnitude - 1) / 2, the first column lowest.

    vectors: magnitudes, float32 [512, 4]. nearest: for every key the index of the nearest vector, int32 [4096].
    """

    vectors: NDArray[np.float32]
    nearest: NDArray[np.int32]

    def digits(self, indices: NDArray[np.int_]) -> NDArray[np.uint8]:
        """Return the digits, uint8 [..., 4], of vectors with these indices."""
        return ((self.vectors[indices] - 1) / 2).astype(np.uint8)


@cache
def vector_table() -> VectorTable:
    """Return the table."""
    IQ3_S.init_grid()  # type: ignore[no-untyped-call]
    vectors = np.ascontiguousarray(np.asarray(IQ3_S.grid, np.float32).reshape(-1, COLUMNS))
    digits = np.arange(MAGNITUDES**COLUMNS)[:, None] // PLACES % MAGNITUDES
    points = (2 * digits + 1).astype(np.float32)
    distances = (vectors**2).sum(1) - 2 * points @ vectors.T  # integers, exact in float32
    return VectorTable(vectors, distances.argmin(1).astype(np.int32))


def split_codes(codes: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the index of every vector, int32 [..., vectors], and whether values are negative, [..., columns].

    codes: uint8 [..., columns], of vectors that the table has.
    """
    negative = codes < FIRST_POSITIVE
    digits = np.where(negative, FIRST_POSITIVE - 1 - codes, codes - FIRST_POSITIVE).astype(np.int64)
    keys = digits.reshape(*codes.shape[:-1], -1, COLUMNS) @ PLACES
    return vector_table().nearest[keys], negative


def join_codes(indices: NDArray[np.int_], negative: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the codes, uint8 [..., columns], of vectors and signs."""
    digits = vector_table().digits(indices).reshape(negative.shape)
    codes: NDArray[np.uint8] = np.where(negative, FIRST_POSITIVE - 1 - digits, digits + FIRST_POSITIVE)
    return codes
