"""Split the external data of ONNX graphs into chunks of a maximum size; the bytes of the weights do not change."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mcpmq.artifact import Artifact
from mcpmq.errors import ReleaseError
from mcpmq.formats.onnx.external_data import ExternalData, StoredArray
from mcpmq.formats.onnx.genai_graphs import COMPONENT, PREFIX, move_variant
from mcpmq.formats.onnx.layout import FOLDER
from mcpmq.system.json_file import read_json

COPY_BUFFER_NBYTES = 1 << 24
SESSION_CONFIG_KEY = "transformers.js_config"

Moved: TypeAlias = dict[tuple[str, int], tuple[str, int]]
"""Arrays by file and offset: their new file and offset."""


def split_files(artifact: Artifact, out: Path, max_nbytes: int) -> dict[str, list[str]]:
    """Copy an artifact into `out` with the weights of every graph in chunks: component -> paths.

    transformers.js reads the number of chunks of each graph from config.json.

    Raises:
        ReleaseError: one weight is larger than a chunk.
    """
    (out / FOLDER).mkdir()
    files: dict[str, list[str]] = {}
    counts, variants, moved = {}, list[str](), Moved()
    # Arrays that the decoder shares belong to the embedding, which is therefore first.
    for record in sorted(artifact.manifest.files, key=lambda one: one.component != "embedding"):
        if record.component == "model":
            shutil.copyfile(artifact.path / record.path, out / record.path)
            files.setdefault("model", []).append(record.path)
        elif record.component == COMPONENT:
            variants.append(record.path)
        elif record.path.endswith(".onnx"):
            chunks = split_graph(artifact.path / record.path, out / FOLDER, max_nbytes, moved)
            names = [record.path, *(f"{FOLDER}/{chunk}" for chunk in chunks)]
            files.setdefault(record.component, []).extend(names)
            counts[Path(record.path).name] = len(chunks)
    for path in variants:
        move_variant(artifact.path / path, out / path.replace(PREFIX, "", 1))
        files.setdefault(COMPONENT, []).append(path)
    _write_chunk_counts(out / "config.json", counts)
    return files


def _write_chunk_counts(file: Path, counts: dict[str, int]) -> None:
    config = read_json(file)
    session = {**config[SESSION_CONFIG_KEY], "use_external_data_format": counts}
    text = json.dumps({**config, SESSION_CONFIG_KEY: session}, indent=2, ensure_ascii=False)
    file.write_text(text + "\n")


def split_graph(graph: Path, out: Path, max_nbytes: int, moved: Moved) -> list[str]:
    """Write a graph and its chunks into `out`; return the names of the chunks.

    `moved` has the arrays that are in chunks of other graphs, by file and offset, and gets those of this one.

    Raises:
        ReleaseError: one weight is larger than a chunk.
    """
    model = ir.load(graph)
    with closing(ExternalData(out, f"{graph.name}_data", max_nbytes)) as data:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _copy_weight(value.const_value, graph.parent, data, max_nbytes, moved)
        data.finish()
    ir.save(model, out / graph.name)
    return data.files


def _copy_weight(
    tensor: ir.ExternalTensor, folder: Path, data: ExternalData, max_nbytes: int, moved: Moved
) -> ir.ExternalTensor:
    if tensor.nbytes > max_nbytes:
        raise ReleaseError(
            f"`{tensor.name}` has {tensor.nbytes:,} bytes, more than the maximum of {max_nbytes:,}",
            "allow larger files: a weight cannot be split",
        )
    place, name = (str(tensor.location), tensor.offset or 0), str(tensor.name)
    array = StoredArray(
        tensor.dtype, tuple(tensor.shape.numpy()), _read_parts(folder / place[0], place[1], tensor.nbytes)
    )
    if place in moved:
        file, offset = moved[place]
        return array.to_external_tensor(data.folder, file, offset, name)
    copied = data.append(name, array)
    moved[place] = str(copied.location), copied.offset or 0
    return copied


def _read_parts(file: Path, offset: int, nbytes: int) -> Iterator[NDArray[Any]]:
    with file.open("rb") as stream:
        stream.seek(offset)
        for begin in range(0, nbytes, COPY_BUFFER_NBYTES):
            yield np.frombuffer(stream.read(min(COPY_BUFFER_NBYTES, nbytes - begin)), np.uint8)
