"""Write GGUF files, a few rows of a tensor in memory at a time."""

from contextlib import closing
from pathlib import Path

from gguf import GGUF_DEFAULT_ALIGNMENT

from mcpmq.formats.gguf.files import GgufFile, MetadataWriter, gguf_files, write_header
from mcpmq.formats.gguf.packing import packed_parts
from mcpmq.quantized_model import QuantizedModel
from mcpmq.system.hashing_file import HashingFile
from mcpmq.system.progress import Progress


def write_files(quantized: QuantizedModel, out: Path, progress: Progress) -> dict[str, list[str]]:
    """Write every file of a model into `out`: component -> file names.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    return {file.component: [_write_file(quantized, out, file, progress)] for file in gguf_files(quantized)}


def _write_file(quantized: QuantizedModel, out: Path, file: GgufFile, progress: Progress) -> str:
    name = file.file_name(quantized)
    with closing(MetadataWriter(out / name, file.architecture)) as writer:
        write_header(writer, file, quantized)
    with closing(HashingFile.append_to(out / name)) as stream:
        _pad(stream)
        for tensor in progress(file.tensors, f"writing {name}"):
            for part in packed_parts(quantized, tensor):
                stream.write(part)
            _pad(stream)
        stream.finish()
    return name


def _pad(stream: HashingFile) -> None:
    """Write zeros up to the alignment of tensors."""
    stream.write(bytes(-stream.nbytes % GGUF_DEFAULT_ALIGNMENT))
