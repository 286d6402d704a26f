"""Two files, each declared whole from shapes and schemes before a weight is read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
from gguf import GGUFType, GGUFWriter

from mcpmq.formats.gguf import language, mmproj
from mcpmq.formats.gguf.names import FILE_TYPES, HYBRID_LANGUAGE, LANGUAGE, file_type, source_name
from mcpmq.formats.gguf.tensors import Slot, slots, widened_ffn
from mcpmq.formats.model_view import Declared

QUANTIZATION_VERSION = 2  # of ggml's block layouts


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One file: what is said before its tensors, and the tensors in their order."""

    component: str
    prefix: str
    kind: str  # `general.type`
    architecture: str
    label: str  # the type that most weights have, as llama.cpp calls it
    slots: list[Slot]
    add_metadata: Callable[[GGUFWriter], None]

    def name(self, model: Declared) -> str:
        """As llama.cpp's own tools would call it."""
        return f"{self.prefix}{source_name(model.artifact.manifest.source.name)}-{self.label}.gguf"


def files_of(model: Declared) -> tuple[GgufFile, ...]:
    """What sees, where the model does, and what reads and writes."""
    return (_sight(model), _language(model)) if model.architecture.vision else (_language(model),)


def _sight(model: Declared) -> GgufFile:
    ffn, tower = widened_ffn(model), mmproj.tower_of(model)
    ours = slots(model, mmproj.COMPONENTS, tower.names, ffn)
    held = [*tower.unread_slots(model), *(tower.computed(model, slot) for slot in ours)]
    if not model.architecture.sees.merges_inside:
        held = [slot for slot in held if not (slot.source or "").startswith("vision.merger.")]
    about = partial(mmproj.add_metadata, quantized=model, ffn=ffn)
    return GgufFile("vision+projector", "mmproj-", GGUFType.MMPROJ, "clip", _label(model, held), held, about)


def _language(model: Declared) -> GgufFile:
    shape = model.architecture.language
    names = HYBRID_LANGUAGE if shape.linear else LANGUAGE
    held = [*language.computed_slots(model), *slots(model, language.COMPONENTS, names, vision_ffn=0)]
    tokens = mmproj.tower_of(model).tokens if model.architecture.vision else ()
    about = partial(language.add_metadata, quantized=model, needed=tokens)
    return GgufFile("language", "", GGUFType.MODEL, shape.architecture, _label(model, held), held, about)


def _label(model: Declared, held: list[Slot]) -> str:
    """The type of the layers' matrices names the file; tables and head often have another on purpose."""
    layers = [slot for slot in held if slot.source and ".layers." in slot.source]
    matrices = [slot for slot in layers if slot.source and model.specs[slot.source].role == "matrix"]
    return file_type((slot.type, prod(slot.shape)) for slot in matrices)


def declare(writer: GGUFWriter, file: GgufFile, model: Declared) -> None:
    """Write all that stands before the data: metadata, and the names, shapes and types of the tensors.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    writer.add_type(file.kind)
    writer.add_file_type(FILE_TYPES[file.label])
    _add_provenance(writer, model)
    file.add_metadata(writer)
    for slot in file.slots:
        nbytes = prod(slot.byte_shape)
        writer.add_tensor_info(slot.name, slot.byte_shape, np.dtype(np.uint8), nbytes, raw_dtype=slot.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _add_provenance(writer: GGUFWriter, model: Declared) -> None:
    manifest = model.artifact.manifest
    writer.add_name(manifest.source.name)
    writer.add_quantized_by("mcpmq")
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_string("mcpmq.version", manifest.versions["mcpmq"])
    writer.add_string("mcpmq.recipe", str(manifest.recipe["name"]))
    writer.add_string("mcpmq.source.sha256", manifest.source.sha256)
    if manifest.calibrated_on:
        writer.add_string("mcpmq.dataset.sha256", manifest.calibrated_on.sha256)
