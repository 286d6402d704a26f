"""GGUF files of a model, described from shapes and schemes before a weight is read."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFType, GGUFValueType, GGUFWriter

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError, FormatError
from mcpmq.formats.format import FileProvenance
from mcpmq.formats.gguf import language, mmproj
from mcpmq.formats.gguf.linear_attention import reorder_value_heads
from mcpmq.formats.gguf.names import FILE_TYPES, language_names, mixture_name, safe_file_name
from mcpmq.formats.gguf.tensors import GgufTensor, gguf_tensors, padded_intermediate_size
from mcpmq.formats.model_view import ModelView

QUANTIZATION_VERSION = 2  # of ggml's block layouts


class MetadataWriter(GGUFWriter):
    """The writer of gguf, with fast arrays: item by item, a vocabulary takes a second in every forecast."""

    def _pack_val(
        self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        kind = ARRAY_KINDS.get(type(val[0])) if vtype == GGUFValueType.ARRAY and isinstance(val, list) and val else None
        if kind is None or sub_type not in (None, kind) or any(type(item) is not type(val[0]) for item in val):
            packed: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
            return packed
        start = struct.pack("<I", vtype) if add_vtype else b""
        return start + struct.pack("<IQ", kind, len(val)) + _pack_items(val)


ARRAY_KINDS = {str: GGUFValueType.STRING, int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}


def _pack_items(items: list[Any]) -> bytes:
    if not isinstance(items[0], str):
        return struct.pack(f"<{len(items)}{'i' if isinstance(items[0], int) else 'f'}", *items)
    texts = [item.encode() for item in items]
    return b"".join(part for text in texts for part in (struct.pack("<Q", len(text)), text))


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One file: its metadata and its tensors in order."""

    component: str
    prefix: str
    general_type: str
    architecture: str
    file_type: str  # llama.cpp's name for a file with this mix of types
    tensors: list[GgufTensor]
    add_metadata: Callable[[GGUFWriter], None]

    def file_name(self, model: ModelView) -> str:
        """Return the name that llama.cpp's own tools would choose."""
        return f"{self.prefix}{safe_file_name(model.artifact.manifest.source.merged_name)}-{self.file_type}.gguf"


def gguf_files(model: ModelView) -> tuple[GgufFile, ...]:
    """Return the mmproj file, if the model has a vision encoder, and the file of the language model."""
    return (_mmproj(model), _language(model)) if model.architecture.vision else (_language(model),)


def _mmproj(model: ModelView) -> GgufFile:
    size, tower = padded_intermediate_size(model), mmproj.tower_of(model)
    from_model = gguf_tensors(model, tower.components, tower.names, size)
    changed = (tower.transform(model, tensor) for tensor in from_model)
    tensors = [*tower.unused_tensors(model), *filter(None, changed)]
    if not model.architecture.required_vision.uses_vit_merger:
        tensors = [tensor for tensor in tensors if not (tensor.source or "").startswith("vision.merger.")]
    metadata = partial(mmproj.add_metadata, model=model, intermediate_size=size)
    file_type = _file_type(model, tensors)
    return GgufFile("vision+projector", "mmproj-", GGUFType.MMPROJ, "clip", file_type, tensors, metadata)


def _language(model: ModelView) -> GgufFile:
    shape = model.architecture.language
    from_model = gguf_tensors(model, language.COMPONENTS, language_names(shape), vision_intermediate_size=0)
    if shape.linear_attention:
        from_model = reorder_value_heads(from_model, shape.linear_attention)
    tensors = [*language.rope_factor_tensors(model), *from_model]
    tokens = mmproj.tower_of(model).required_tokens if model.architecture.vision else ()
    metadata = partial(language.add_metadata, model=model, required_tokens=tokens)
    file_type = _file_type(model, tensors)
    return GgufFile("language", "", GGUFType.MODEL, shape.gguf_architecture, file_type, tensors, metadata)


def _file_type(model: ModelView, tensors: list[GgufTensor]) -> str:
    """Count the matrices of layers only: embedding and head often have a different type."""
    layers = [tensor for tensor in tensors if tensor.source and ".layers." in tensor.source]
    matrices = [tensor for tensor in layers if tensor.source and model.specs[tensor.source].role == "matrix"]
    return mixture_name((tensor.type, prod(tensor.shape)) for tensor in matrices)


def write_header(writer: GGUFWriter, file: GgufFile, model: ModelView) -> None:
    """Write the metadata and the names, shapes and types of the tensors.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    writer.add_type(file.general_type)
    writer.add_file_type(FILE_TYPES[file.file_type])
    _add_provenance(writer, model)
    file.add_metadata(writer)
    for tensor in file.tensors:
        nbytes = prod(tensor.byte_shape)
        writer.add_tensor_info(tensor.name, tensor.byte_shape, np.dtype(np.uint8), nbytes, raw_dtype=tensor.type)
    writer.write_header_to_file()
    try:
        writer.write_kv_data_to_file()
    except (OverflowError, struct.error) as error:  # the writer converts values to 32 bits
        raise FormatError(f"GGUF does not represent a value of the model: {error}", "check config.json") from error
    writer.write_ti_data_to_file()


def _add_provenance(writer: GGUFWriter, model: ModelView) -> None:
    manifest = model.artifact.manifest
    writer.add_name(manifest.source.merged_name)
    writer.add_quantized_by("mcpmq")
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_string("mcpmq.version", manifest.versions.get("mcpmq", ""))
    writer.add_string("mcpmq.recipe", str(manifest.recipe.get("name", "")))
    writer.add_string("mcpmq.source.sha256", manifest.source.sha256)
    if manifest.source.revision:
        writer.add_string("mcpmq.source.revision", manifest.source.revision)
    if manifest.calibration_set:
        writer.add_string("mcpmq.calibration.sha256", manifest.calibration_set.sha256)


def read_provenance(artifact: Artifact) -> Iterator[FileProvenance]:
    """Yield the provenance that each file of an artifact records; of a split file, the first part has the metadata.

    Raises:
        ArtifactError: a file is not a GGUF file.
    """
    for component in ("language", "vision+projector"):
        for file in artifact.component_files(component)[:1]:
            try:
                reader = GGUFReader(file)
            except (OSError, ValueError, LookupError, MemoryError, OverflowError) as error:
                raise ArtifactError(f"`{file}` is not a GGUF file: {error}", "download it again") from error
            yield FileProvenance(file.name, _text(reader, "mcpmq.source.sha256"), _text(reader, "mcpmq.recipe"))


def _text(reader: GGUFReader, key: str) -> str:
    found = reader.get_field(key)
    return str(found.contents()) if found else ""
