"""Both files, filled tensor by tensor."""

from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path

from gguf import GGUFWriter

from mcpmq.formats.gguf.files import GgufFile, declare, files_of
from mcpmq.formats.gguf.packing import pack
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.quantized_model import Quantized
from mcpmq.system.progress import Progress


def write_files(quantized: Quantized, out: Path, progress: Progress) -> dict[str, list[str]]:
    """Component -> names of the files written into `out`."""
    return {file.component: [_write_file(quantized, out, file, progress)] for file in files_of(quantized)}


def _write_file(quantized: Quantized, out: Path, file: GgufFile, progress: Progress) -> str:
    name = file.name(quantized)
    with closing(GGUFWriter(out / name, file.architecture)) as writer:
        declare(writer, file, quantized)
        _write_tensors(writer, quantized, file.slots, partial(progress, what=f"writing {name}"))
    return name


def _write_tensors(
    writer: GGUFWriter, quantized: Quantized, held: list[Slot], progress: Callable[[list[Slot]], Iterable[Slot]]
) -> None:
    for slot in progress(held):
        others = [quantized.load(name) for name in slot.others]
        writer.write_tensor_data(pack(quantized.load(slot.source) if slot.source else None, slot, others))
