"""Forecast the size of the ONNX graphs to the byte: emit the graphs, count their weights."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mcpmq.families.family import TensorSpec
from mcpmq.formats.format import FileForecast, FilesForecast, RuntimeMemory, WeightForecast
from mcpmq.formats.model_view import ModelView
from mcpmq.formats.onnx.block_quant import block_size
from mcpmq.formats.onnx.config_files import write_config_files
from mcpmq.formats.onnx.external_data import CountingSink
from mcpmq.formats.onnx.genai import write_genai_files
from mcpmq.formats.onnx.genai_graphs import COMPONENT
from mcpmq.formats.onnx.graph import Graph
from mcpmq.formats.onnx.layout import (
    FOLDER,
    GraphFiles,
    GraphSpec,
    data_file_name,
    emit_graph,
    graph_specs,
    padded_intermediate_size,
    shares_embedding,
    sharing_sink,
)
from mcpmq.formats.onnx.weight_emitter import FLOAT_DTYPES, TOKEN_INPUT, TokenInput, WeightEmitter
from mcpmq.formats.padding import stored_shape
from mcpmq.recipe import TOKENS
from mcpmq.scheme import IntegerScheme
from mcpmq.system.progress import silent
from mcpmq.system.temporary_folder import temporary_folder

if TYPE_CHECKING:
    from torch import Tensor

# The KV cache is float32; ONNX Runtime repacks the weights for its kernels at load time and keeps them repacked.
RUNTIME = RuntimeMemory(kv_cache_element_nbytes=4, resident_ratio=1.35, logits_per_pass=1)


class PlaceholderGrid(NamedTuple):
    """The grid of an input before calibration chooses it."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class PlaceholderValues:
    """Placeholders for all that a forecast does not load or compute."""

    model: ModelView
    _grids: dict[str | None, PlaceholderGrid] = field(default_factory=dict)

    def codes(self, name: str, shape: tuple[int, int]) -> tuple[()]:
        """Load nothing."""
        return ()

    def floats(self, name: str, shape: tuple[int, ...]) -> None:
        """Load nothing."""

    def activation_grids(self, name: str, inputs: Sequence[ir.Value]) -> Sequence[PlaceholderGrid | TokenInput]:
        """Return one grid per input; two that turn out to be equal will share a few bytes."""
        if self.model.records[name].activation is None:
            return []
        if self.model.records[name].activation == TOKENS:
            return [TOKEN_INPUT]
        return [self._grids.setdefault(value.name, self._next_grid()) for value in inputs]

    def constant(self, compute: "Callable[[], Tensor]", length: int) -> NDArray[np.float32]:
        """Return zeros: computing the values takes torch."""
        return np.zeros(length, np.float32)

    def _next_grid(self) -> PlaceholderGrid:
        return PlaceholderGrid(1.0 + len(self._grids), len(self._grids) % 256)


def forecast_files(model: ModelView) -> FilesForecast:
    """Forecast the graphs with their chunks of weights, the configuration files and the storage of each weight."""
    files: list[FileForecast] = []
    arrays: list[Mapping[str, int]] = []
    written: dict[str, GraphFiles] = {}
    with temporary_folder() as folder:
        (folder / FOLDER).mkdir()
        for spec in graph_specs(model.architecture):
            graph_files, sink = _emit_counting(spec, model, folder / FOLDER, written)
            nbytes = {graph_files.graph_file: (folder / FOLDER / graph_files.graph_file).stat().st_size}
            nbytes |= sink.chunks.sizes
            files += [FileForecast(f"{FOLDER}/{file}", spec.component, size) for file, size in nbytes.items()]
            arrays.append(sink.arrays)
            written[spec.component] = graph_files
        texts = write_config_files(model, folder, written)
        variants, more_texts = write_genai_files(model, folder, written)
        by_component = {COMPONENT: variants, "model": [*texts, *more_texts]}
        files += [
            FileForecast(name, component, (folder / name).stat().st_size)
            for component, names in by_component.items()
            for name in names
        ]
    return FilesForecast(tuple(files), tuple(_weight_forecasts(model, arrays)), RUNTIME)


def _emit_counting(
    spec: GraphSpec, model: ModelView, folder: Path, written: Mapping[str, GraphFiles]
) -> tuple[GraphFiles, CountingSink]:
    sink = CountingSink(folder, data_file_name(spec, model))
    graph = Graph(spec.stem, sharing_sink(spec, model, sink, written))
    weights = WeightEmitter(model, graph, PlaceholderValues(model), padded_intermediate_size(model))
    return emit_graph(spec, model, folder, weights, silent), sink


def _weight_forecasts(model: ModelView, graphs: Sequence[Mapping[str, int]]) -> Iterator[WeightForecast]:
    """Sum up the arrays of every weight; a tied embedding is in two graphs, or shared by them."""
    sizes_by_graph: list[Counter[str]] = []
    for arrays in graphs:
        sizes_by_graph.append(Counter())
        for array, nbytes in arrays.items():
            sizes_by_graph[-1][_weight_of(array, model.specs)] += nbytes
    for name in model.specs:
        sizes = [sizes[name] for sizes in sizes_by_graph if name in sizes]
        stored_as, reason = _storage(model, name, max(sizes, default=0))
        reason = "once in each of two graphs" if len(sizes) > 1 else reason
        reason = "shared by two graphs" if name == "embedding" and shares_embedding(model) else reason
        yield WeightForecast(name, stored_as, sum(sizes), reason)


def _weight_of(array: str, specs: Mapping[str, TensorSpec]) -> str:
    """Return the weight of an array: `head.scales` belongs to `head`, `x.qkv.q.bias` to `x.qkv.bias`."""
    stem, _, last = array.rpartition(".")
    suffix = ".bias" if last == "bias" else ""
    stem = stem if suffix else array
    while stem + suffix not in specs:
        stem = stem.rpartition(".")[0]
    return stem + suffix


def _storage(model: ModelView, name: str, nbytes: int) -> tuple[str, str]:
    """Return how the file stores a weight, and the reason for a difference from the plan."""
    scheme, spec = model.scheme(name), model.specs[name]
    if not isinstance(scheme, IntegerScheme):
        planned = FLOAT_DTYPES[str(scheme or model.records[name].dtype)]
        stored = ir.DataType.FLOAT if nbytes >= 4 * prod(spec.shape) else planned
        return stored.name.lower(), "" if stored == planned else "ONNX Runtime computes with it in float32"
    if model.records[name].activation:
        return f"{scheme.bits} bits per row, inputs too", ""
    stored_as, padded_size = f"{scheme.bits} bits in blocks of {block_size(scheme)}", padded_intermediate_size(model)
    if spec.paddable_axis and stored_shape(spec, padded_size) != spec.shape:
        return stored_as, f"intermediate size is zero-padded to {padded_size:,}, a multiple of the block size"
    return stored_as, "" if scheme.group_size else "blocks repeat the scale of their row"
