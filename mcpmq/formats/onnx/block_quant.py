"""What ONNX Runtime's blocks can hold, decided without reading a weight."""

from mcpmq.scheme import IntegerScheme

ROW_BLOCK_COLUMNS = 128  # a row with one scale is written as blocks of this many columns that share it


def block_columns(scheme: IntegerScheme) -> int:
    """Columns that share a scale in the file."""
    return scheme.group_size or ROW_BLOCK_COLUMNS


def blocks(scheme: IntegerScheme, columns: int) -> int:
    """Blocks of a row in the file; the last may be ragged."""
    return -(-columns // block_columns(scheme))


def table_refusal(scheme: IntegerScheme, columns: int) -> str | None:
    """Why GatherBlockQuantized would not give back the rows of a table; None if it would."""
    if scheme.bits == 8:
        return None
    if columns % 2:
        return f"two columns of a 4-bit table share a byte, and {columns} is odd"
    count = blocks(scheme, columns)
    if count % 2 and not scheme.symmetric:
        return (
            f"ONNX Runtime 1.24 misreads zero points of a 4-bit table where a row has an odd number of them ({count})"
        )
    return None
