"""Two files, each declared whole from shapes and schemes and then filled tensor by tensor."""

import re
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGUFType, GGUFWriter

from mcpmq.formats.gguf import language, mmproj
from mcpmq.formats.gguf.names import FILE_TYPES, HYBRID_LANGUAGE, LANGUAGE, file_type
from mcpmq.formats.gguf.tensors import Slot, pack, slots, widened_ffn
from mcpmq.progress import Progress
from mcpmq.quantized import Quantized

QUANTIZATION_VERSION = 2  # of ggml's block layouts


@dataclass(frozen=True, slots=True)
class _File:
    prefix: str
    kind: str  # `general.type`
    architecture: str
    slots: list[Slot]
    add_metadata: Callable[[GGUFWriter], None]


def write_files(quantized: Quantized, out: Path, progress: Progress) -> dict[str, list[str]]:
    """Component -> names of the files written into `out`."""
    files = {"language": _language_file(quantized)}
    if quantized.architecture.vision:
        files = {"vision+projector": _sight_file(quantized), **files}
    return {component: [_write_file(quantized, out, file, progress)] for component, file in files.items()}


def _sight_file(quantized: Quantized) -> _File:
    ffn, tower = widened_ffn(quantized), mmproj.tower_of(quantized)
    held = [*tower.unread_slots(quantized), *slots(quantized, mmproj.COMPONENTS, tower.names, ffn)]
    if not quantized.architecture.sees.merges_inside:
        held = [slot for slot in held if not (slot.source or "").startswith("vision.merger.")]
    return _File("mmproj-", GGUFType.MMPROJ, "clip", held, partial(mmproj.add_metadata, quantized=quantized, ffn=ffn))


def _language_file(quantized: Quantized) -> _File:
    names = HYBRID_LANGUAGE if quantized.architecture.language.linear else LANGUAGE
    held = [*language.computed_slots(quantized), *slots(quantized, language.COMPONENTS, names, vision_ffn=0)]
    tokens = mmproj.tower_of(quantized).tokens if quantized.architecture.vision else ()
    about = partial(language.add_metadata, quantized=quantized, needed=tokens)
    return _File("", GGUFType.MODEL, quantized.architecture.language.architecture, held, about)


def _write_file(quantized: Quantized, out: Path, file: _File, progress: Progress) -> str:
    label = _label(quantized, file.slots)
    source = re.sub(r"[^A-Za-z0-9._-]+", "-", quantized.artifact.manifest.source.name)
    name = f"{file.prefix}{source}-{label}.gguf"
    with closing(GGUFWriter(out / name, file.architecture)) as writer:
        writer.add_type(file.kind)
        writer.add_file_type(FILE_TYPES[label])
        _add_provenance(writer, quantized)
        file.add_metadata(writer)
        _write_tensors(writer, quantized, file.slots, partial(progress, what=f"writing {name}"))
    return name


def _label(quantized: Quantized, held: list[Slot]) -> str:
    """The type of the layers' matrices names the file; tables and head often have another on purpose."""
    layers = [slot for slot in held if slot.source and ".layers." in slot.source]
    matrices = [slot for slot in layers if slot.source and quantized.specs[slot.source].role == "matrix"]
    return file_type((slot.type, prod(slot.shape)) for slot in matrices)


def _add_provenance(writer: GGUFWriter, quantized: Quantized) -> None:
    manifest = quantized.artifact.manifest
    writer.add_name(manifest.source.name)
    writer.add_quantized_by("mcpmq")
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_string("mcpmq.version", manifest.versions["mcpmq"])
    writer.add_string("mcpmq.recipe", str(manifest.recipe["name"]))
    writer.add_string("mcpmq.source.sha256", manifest.source.sha256)
    if manifest.calibrated_on:
        writer.add_string("mcpmq.calibration.sha256", manifest.calibrated_on.sha256)


def _write_tensors(
    writer: GGUFWriter, quantized: Quantized, held: list[Slot], progress: Callable[[list[Slot]], Iterable[Slot]]
) -> None:
    for slot in held:
        nbytes = prod(slot.byte_shape)
        writer.add_tensor_info(slot.name, slot.byte_shape, np.dtype(np.uint8), nbytes, raw_dtype=slot.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for slot in progress(held):
        writer.write_tensor_data(pack(quantized.load(slot.source) if slot.source else None, slot))
