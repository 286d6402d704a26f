"""Exact sizes of GGUF files: headers are written to a temporary folder, tensors are only counted."""

from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES

from mcpmq.formats.format import FileForecast, FilesForecast, RuntimeMemory, WeightForecast
from mcpmq.formats.gguf.files import GgufFile, MetadataWriter, gguf_files, write_header
from mcpmq.formats.gguf.tensors import GgufTensor
from mcpmq.formats.model_view import ModelView
from mcpmq.scheme import IntegerScheme
from mcpmq.system.temporary_folder import temporary_folder

# The KV cache is F16 by default; weights stay in memory as they are on disk.
RUNTIME = RuntimeMemory(kv_cache_element_nbytes=2, resident_ratio=1.0, logits_per_pass=512)


def forecast_files(model: ModelView) -> FilesForecast:
    """Compute the size of every file and the stored type of every weight.

    Raises:
        FormatError: llama.cpp would not reproduce the tokenizer or the model.
    """
    files = gguf_files(model)
    tensors = [tensor for file in files for tensor in file.tensors]
    with temporary_folder() as folder:
        sizes = tuple(_file_forecast(model, file, folder) for file in files)
    return FilesForecast(sizes, tuple(_weight_forecasts(model, tensors)), RUNTIME)


def _file_forecast(model: ModelView, file: GgufFile, folder: Path) -> FileForecast:
    path = folder / file.file_name(model)
    with closing(MetadataWriter(path, file.architecture)) as writer:
        write_header(writer, file, model)
        alignment = writer.data_alignment
    end = path.stat().st_size
    for nbytes in (0, *(prod(tensor.byte_shape) for tensor in file.tensors)):  # 0: the data section is aligned
        end = -(-(end + nbytes) // alignment) * alignment
    return FileForecast(path.name, file.component, end)


def _weight_forecasts(model: ModelView, tensors: list[GgufTensor]) -> list[WeightForecast]:
    by_source: dict[str, list[GgufTensor]] = {}
    for tensor in tensors:
        for name in tensor.stack or filter(None, (tensor.source,)):
            part = replace(tensor, source=name, shape=tensor.shape[1:]) if tensor.stack else tensor
            by_source.setdefault(name, []).append(part)
    return [
        WeightForecast(name, parts[0].type.name, sum(prod(part.byte_shape) for part in parts), _reason(model, parts[0]))
        for name, parts in by_source.items()
    ]


def _reason(model: ModelView, tensor: GgufTensor) -> str:
    """Return why the stored type or shape differs from the plan; an empty string if it does not."""
    assert tensor.source is not None
    if tensor.reason:
        return tensor.reason
    if model.specs[tensor.source].role == "other":
        return "" if model.records[tensor.source].dtype == "float32" else "llama.cpp computes with it in F32"
    return "; ".join(reason for reason in (_scale_reason(model, tensor), _padding_reason(model, tensor)) if reason)


def _scale_reason(model: ModelView, tensor: GgufTensor) -> str:
    assert tensor.source is not None
    scheme, block = model.scheme(tensor.source), GGML_QUANT_SIZES[tensor.type][0]
    if not isinstance(scheme, IntegerScheme) or scheme.group_size == block:
        return ""
    return f"blocks of {block} columns repeat the scale of their group"


def _padding_reason(model: ModelView, tensor: GgufTensor) -> str:
    assert tensor.source is not None
    spec = model.specs[tensor.source]
    columns = spec.shape[0] if spec.transposed else spec.shape[-1]
    if spec.paddable_axis == "columns" and tensor.shape[-1] != columns:
        return f"{columns:,} columns are zero-padded to {tensor.shape[-1]:,}, a multiple of the block size"
    if spec.paddable_axis == "rows" and tensor.shape[0] != spec.shape[0]:
        return f"{spec.shape[0]:,} rows are zero-padded to {tensor.shape[0]:,}, the padded columns of the next matrix"
    return ""
