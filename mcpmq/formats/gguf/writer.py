"""Write GGUF files, one tensor in memory at a time."""

from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path

from gguf import GGUFWriter

from mcpmq.formats.gguf.files import GgufFile, gguf_files, write_header
from mcpmq.formats.gguf.packing import pack
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.system.progress import Progress


def write_files(quantized: QuantizedModel, out: Path, progress: Progress) -> dict[str, list[str]]:
    """Write every file of a model into `out`: component -> file names.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    return {file.component: [_write_file(quantized, out, file, progress)] for file in gguf_files(quantized)}


def _write_file(quantized: QuantizedModel, out: Path, file: GgufFile, progress: Progress) -> str:
    name = file.file_name(quantized)
    with closing(GGUFWriter(out / name, file.architecture)) as writer:
        write_header(writer, file, quantized)
        _write_tensors(writer, quantized, file.tensors, partial(progress, label=f"writing {name}"))
    return name


def _write_tensors(
    writer: GGUFWriter,
    quantized: QuantizedModel,
    tensors: list[GgufTensor],
    progress: Callable[[list[GgufTensor]], Iterable[GgufTensor]],
) -> None:
    for tensor in progress(tensors):
        weight = quantized.load(tensor.source) if tensor.source else None
        writer.write_tensor_data(pack(weight, tensor, [quantized.load(name) for name in tensor.extra_sources]))
