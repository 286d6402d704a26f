"""Forecast the size of a Hugging Face artifact: text files are rendered, tensors are counted."""

from collections.abc import Iterator
from math import prod

from mcpmq.formats.format import FileForecast, FilesForecast, RuntimeMemory, WeightForecast
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.hf.layout import CONFIG, HfLayout
from mcpmq.formats.hf.names import module_name
from mcpmq.formats.hf.shards import ShardLayout, max_header_nbytes, specs_by_component
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.scheme import FLOAT_BYTES, FloatScheme
from mcpmq.system.safetensors_file import DTYPES

# transformers keeps the KV cache in 16 bits and computes the logits of the last position alone.
RUNTIME = RuntimeMemory(kv_cache_element_nbytes=2, resident_ratio=1.0, logits_per_pass=1)


def forecast_files(model: ModelView, layout: HfLayout) -> FilesForecast:
    """Forecast every file of an artifact and the storage of every weight."""
    shards, weights = ShardLayout(), []
    method, family = layout.method_name(model), model.artifact.manifest.family
    tensors = {tensor.name: tensor for tensor in model.tensors}
    for component, specs in specs_by_component(model).items():
        shards.begin(component, max_header_nbytes(model, specs))
        for spec in specs:
            tensor = tensors[spec.name]
            sizes = _stored_nbytes(tensor, layout, layout.stored_name(family, spec.hub_name))
            shards.add(sizes)
            stored_as = method if is_packed(tensor.scheme) else str(tensor.scheme or tensor.dtype)
            weights.append(WeightForecast(spec.name, stored_as, sum(sizes.values()), ""))
    return FilesForecast(tuple(_file_forecasts(model, layout, shards)), tuple(weights), RUNTIME)


def _file_forecasts(model: ModelView, layout: HfLayout, shards: ShardLayout) -> Iterator[FileForecast]:
    for index, shard in enumerate(shards.shards):
        yield FileForecast(shards.file_name(index), shard.component, shard.file_nbytes)
    copied = {file.path: file for file in model.artifact.manifest.files if file.path != CONFIG}
    texts = {name: len(text.encode()) for name, text in layout.text_files(model, shards).items()}
    for file in copied.values():
        if file.path not in texts:
            yield FileForecast(file.path, file.component, file.nbytes)
    yield from (FileForecast(name, "model", nbytes) for name, nbytes in texts.items())


def _stored_nbytes(tensor: TensorPlan, layout: HfLayout, stored: str) -> dict[str, int]:
    """Return the bytes of the tensors that store a weight, by their names in the files."""
    if is_packed(tensor.scheme):
        module = module_name(stored)
        return {f"{module}.{name}": nbytes for name, nbytes in layout.packed_nbytes(tensor).items()}
    return {stored: prod(tensor.spec.shape) * _element_nbytes(tensor)}


def _element_nbytes(tensor: TensorPlan) -> int:
    if isinstance(tensor.scheme, FloatScheme):
        return FLOAT_BYTES[tensor.scheme.dtype]
    return dict(DTYPES.values())[tensor.dtype]
