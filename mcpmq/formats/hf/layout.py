"""The layout that all Hugging Face formats share, and the data in which they differ."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcpmq.artifact import MODEL_CARD
from mcpmq.families import family_named
from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats.format import FilesForecast, Format
from mcpmq.formats.hf.card import render_card
from mcpmq.formats.hf.constraints import is_linear, is_packed
from mcpmq.formats.hf.shards import ShardLayout
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan
from mcpmq.scheme import IntegerScheme, Scheme
from mcpmq.system.progress import Progress

if TYPE_CHECKING:  # a plan is checked and forecast without torch
    from torch import Tensor

    from mcpmq.qtensor import QTensor
    from mcpmq.quantized_model import QuantizedModel

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
FLOAT16_SCALES = (
    "Scales are float16, and some are negative; software that computes in bfloat16 rounds the scales once more."
)


def _checkpoint_config(model: ModelView) -> Mapping[str, Any]:
    return model.config


def _published_name(family: str, name: str) -> str:
    return name


def _unchanged(values: "Tensor", spec: TensorSpec, shape: LanguageShape) -> "Tensor":
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class HfLayout:
    """One Hugging Face format.

    components: components whose linear layers can be quantized
    row_multiple, column_multiple: required of a weight's shape; a group size takes the place of `column_multiple`
    quantization_config: (model) -> `quantization_config` of config.json
    packed_nbytes: (tensor) -> bytes of the tensors that store a quantized weight, by their names in its module
    packing: module with `pack(weight, dtype) -> tensors by their names in the weight's module` and its inverse `unpack`
    usage: software that loads the artifact, for the model card
    legacy_config: a second file with `quantization_config`, for loaders that do not read config.json
    method: name of the format on the model card and in forecasts; None: `quant_method` of `quantization_config`
    library: the library that loads the artifact, for the metadata of the model card
    config: (model) -> config.json without the quantization; by default that of the checkpoint
    config_keys: keys of config.json that have `quantization_config`
    stored_name: (family, published name) -> name in the files; also of a module, with a dot at its end
    with_activations: the layout of a model whose matrices have quantized inputs; None: the same
    to_stored, from_stored: (unquantized tensor, its spec, the language model) -> the same in the layout of the files,
        and back
    """

    components: tuple[str, ...]
    row_multiple: int = 1
    column_multiple: int = 1
    quantization_config: Callable[[ModelView], dict[str, Any]]
    packed_nbytes: Callable[[TensorPlan], Mapping[str, int]]
    packing: str
    usage: str
    legacy_config: str | None = None
    method: str | None = None
    library: str = "transformers"
    config: Callable[[ModelView], Mapping[str, Any]] = _checkpoint_config
    config_keys: tuple[str, ...] = ("quantization_config",)
    stored_name: Callable[[str, str], str] = _published_name
    with_activations: "HfLayout | None" = None
    to_stored: "Callable[[Tensor, TensorSpec, LanguageShape], Tensor]" = _unchanged
    from_stored: "Callable[[Tensor, TensorSpec, LanguageShape], Tensor]" = _unchanged

    @property
    def declare(self) -> partial[Format]:
        """The format declaration with the functions of this layout; the caller adds name, schemes and requirements."""
        return partial(
            Format, single_scheme=True, write=self.write, forecast=self.forecast, shape_limit=self.shape_limit
        )

    def shape_limit(self, tensor: TensorPlan) -> str | None:
        """Return why loaders cannot load a quantized tensor of this role and shape; None if they can.

        Floating-point tensors of any type load: the loader converts them to its compute dtype.
        """
        if not is_packed(tensor.scheme):
            return None
        if tensor.spec.component not in self.components or not is_linear(tensor.spec):
            return f"only linear layers of {' and '.join(self.components)} can be quantized in this format; use `keep`"
        rows, columns = tensor.matrix_shape
        group_size = tensor.scheme.group_size if isinstance(tensor.scheme, IntegerScheme) else None
        multiple = group_size or self.column_multiple
        if rows % self.row_multiple or columns % multiple:
            return f"{rows} x {columns} is not a multiple of {self.row_multiple} x {multiple}; use `keep`"
        return None

    def pack(self, weight: "QTensor", dtype: str) -> "Mapping[str, Tensor]":
        """Return the tensors that store a weight whose original has this dtype, by their names in its module."""
        packed: Mapping[str, Tensor] = import_module(self.packing).pack(weight, dtype)
        return packed

    def unpack(self, tensors: "Mapping[str, Tensor]", scheme: Scheme) -> "QTensor":
        """Return the weight that `pack` packed."""
        weight: QTensor = import_module(self.packing).unpack(tensors, scheme)
        return weight

    def write(self, quantized: "QuantizedModel", out: Path, progress: Progress) -> dict[str, list[str]]:
        """Write the artifact, one weight in memory at a time: component -> names of its files."""
        from mcpmq.formats.hf.writer import write_model

        return write_model(quantized, out, self.layout_for(quantized), progress)

    def forecast(self, model: ModelView) -> FilesForecast:
        """Forecast every file of the artifact."""
        from mcpmq.formats.hf.sizes import forecast_files

        return forecast_files(model, self.layout_for(model))

    def layout_for(self, model: ModelView) -> "HfLayout":
        """Return the layout of a model: that with quantized inputs, if it has them."""
        return self.with_activations if self.with_activations and has_activations(model) else self

    def method_name(self, model: ModelView) -> str:
        """Return the name of the format on the model card."""
        return self.method or str(self.quantization_config(model)["quant_method"])

    def text_files(self, model: ModelView, shards: ShardLayout) -> dict[str, str]:
        """Return the content of the files that are not copied from the checkpoint: name -> text."""
        quantization_config, manifest = self.quantization_config(model), model.artifact.manifest
        names, config = (self.method_name(model), self.usage, self.library), {**self.config(model), **_switches(model)}
        texts = {
            CONFIG: json_text({**config, **dict.fromkeys(self.config_keys, quantization_config)}),
            MODEL_CARD: render_card(manifest, model.config, model.tensors, *names),
            INDEX: json_text(shards.index()),
        }
        return {**texts, self.legacy_config: json_text(quantization_config)} if self.legacy_config else texts


def has_activations(model: ModelView) -> bool:
    """Return whether matrices of a model have quantized inputs."""
    return any(record.activation for record in model.records.values())


def _switches(model: ModelView) -> dict[str, bool]:
    """Return the keys that disable components which the artifact does not have: without speech output, that of it."""
    manifest = model.artifact.manifest
    key = family_named(manifest.family).speech_switch if manifest.recipe.get("speech_output") == "drop" else ""
    return {key: False} if key else {}


def packed_int32_nbytes(rows: int, codes: int, bits: int) -> int:
    """Return the bytes of rows of codes, packed into 32-bit words."""
    return 4 * rows * -(-codes * bits // 32)


def json_text(content: Mapping[str, Any]) -> str:
    """Format JSON as transformers writes its configuration."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
