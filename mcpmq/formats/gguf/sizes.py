"""The size of both files to the byte: headers are written for real, tensors are counted."""

from contextlib import closing
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import GGML_QUANT_SIZES, GGUFWriter

from mcpmq.formats.format import FileForecast, LayoutForecast, Runtime, WeightForecast
from mcpmq.formats.gguf.files import GgufFile, declare, files_of
from mcpmq.formats.gguf.tensors import Slot
from mcpmq.formats.model_view import Declared
from mcpmq.scheme import IntegerScheme

# Keys and values are F16 unless told otherwise; the bytes of the file are computed with as they are.
RUNTIME = Runtime(cache_nbytes=2, resident=1.0, pass_logits=512)


def sized(model: Declared) -> LayoutForecast:
    """Both files, and how each weight lies in them."""
    files = files_of(model)
    weights = [slot for file in files for slot in file.slots]
    with TemporaryDirectory(prefix="mcpmq-") as folder:
        sizes = tuple(_size_of(model, file, Path(folder)) for file in files)
    return LayoutForecast(sizes, tuple(_weights(model, weights)), RUNTIME)


def _size_of(model: Declared, file: GgufFile, folder: Path) -> FileForecast:
    path = folder / file.name(model)
    with closing(GGUFWriter(path, file.architecture)) as writer:
        declare(writer, file, model)
        align = writer.data_alignment
    end = path.stat().st_size
    for nbytes in (0, *(prod(slot.byte_shape) for slot in file.slots)):  # 0: the data begins aligned
        end = -(-(end + nbytes) // align) * align
    return FileForecast(path.name, file.component, end)


def _weights(model: Declared, held: list[Slot]) -> list[WeightForecast]:
    by_source: dict[str, list[Slot]] = {}
    for slot in held:
        if slot.source is not None:
            by_source.setdefault(slot.source, []).append(slot)
    return [
        WeightForecast(name, parts[0].type.name, sum(prod(part.byte_shape) for part in parts), _reason(model, parts[0]))
        for name, parts in by_source.items()
    ]


def _reason(model: Declared, slot: Slot) -> str:
    """Why the file holds something else than the plan says."""
    assert slot.source is not None
    if slot.reason:
        return slot.reason
    spec, scheme = model.specs[slot.source], model.scheme(slot.source)
    if spec.role == "other":
        return "" if model.records[spec.name].dtype == "float32" else "llama.cpp computes with it in F32"
    block = GGML_QUANT_SIZES[slot.type][0]
    reasons = []
    if isinstance(scheme, IntegerScheme) and scheme.group_size != block:
        reasons.append(f"blocks of {block} columns repeat the scale of their group")
    width = spec.shape[0] if spec.transposed else spec.shape[-1]
    if spec.may_grow == "columns" and slot.shape[-1] != width:
        reasons.append(f"zeros widen its {width:,} columns to {slot.shape[-1]:,}, for whole blocks")
    elif spec.may_grow == "rows" and slot.shape[0] != spec.shape[0]:
        reasons.append(f"rows of zeros match the widened matrix after it, {slot.shape[0]:,} for {spec.shape[0]:,}")
    return "; ".join(reasons)
