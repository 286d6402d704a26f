"""An ONNX graph whose weights lie in chunks of a given size; no byte of a weight is changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mcpmq.errors import ReleaseError
from mcpmq.formats.onnx.external_data import ExternalData, StoredArray

COPIED_NBYTES = 1 << 24  # at a time


def split(graph: Path, out: Path, largest_nbytes: int) -> list[str]:
    """Write a graph and its chunks into `out`; the names of the chunks.

    Raises:
        ReleaseError: one weight does not fit into a chunk.
    """
    model = ir.load(graph)
    data = ExternalData(out, f"{graph.name}_data", largest_nbytes)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _moved(value.const_value, graph.parent, data, largest_nbytes)
    data.close()
    ir.save(model, out / graph.name)
    return data.files


def _moved(tensor: ir.ExternalTensor, folder: Path, data: ExternalData, largest_nbytes: int) -> ir.ExternalTensor:
    if tensor.nbytes > largest_nbytes:
        raise ReleaseError(
            f"`{tensor.name}` has {tensor.nbytes:,} bytes, more than the {largest_nbytes:,} of a part",
            "allow larger parts: a weight cannot be divided",
        )
    parts = _bytes_of(folder / tensor.location, tensor.offset or 0, tensor.nbytes)
    return data.append(str(tensor.name), StoredArray(tensor.dtype, tuple(tensor.shape.numpy()), parts))


def _bytes_of(file: Path, offset: int, nbytes: int) -> Iterator[NDArray[Any]]:
    with file.open("rb") as stream:
        stream.seek(offset)
        for begin in range(0, nbytes, COPIED_NBYTES):
            yield np.frombuffer(stream.read(min(COPIED_NBYTES, nbytes - begin)), np.uint8)
