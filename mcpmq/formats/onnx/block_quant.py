"""Block quantization of ONNX Runtime: block sizes and limits, computed without the weights."""

from mcpmq.scheme import IntegerScheme

ACCURACY_LEVEL = 4  # of MatMulNBits: 8-bit activations, which phone CPUs compute fast; 0: float32
ROW_BLOCK_SIZE = 128  # columns per block where a scheme has one scale per row; the blocks repeat the scale


def block_size(scheme: IntegerScheme) -> int:
    """Return the columns per block in the file."""
    return scheme.group_size or ROW_BLOCK_SIZE


def blocks_per_row(scheme: IntegerScheme, columns: int) -> int:
    """Return the blocks per row in the file; the last one may be partial."""
    return -(-columns // block_size(scheme))


def unsupported_table_reason(scheme: IntegerScheme, columns: int) -> str | None:
    """Return why GatherBlockQuantized cannot look up rows of a table correctly; None if it can."""
    if scheme.bits == 8:
        return None
    if columns % 2:
        return f"two columns of a 4-bit table share a byte, but the table has {columns} columns, an odd number"
    count = blocks_per_row(scheme, columns)
    if count % 2 and not scheme.symmetric:
        return (
            f"ONNX Runtime 1.24 misreads the zero points of a 4-bit table with an odd number of them per row ({count})"
        )
    return None
