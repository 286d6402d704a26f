"""The size of a Hugging Face artifact: texts are written for real, tensors are counted."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from mcpmq.artifact import CARD
from mcpmq.formats.format import FileForecast, LayoutForecast, Runtime, WeightForecast
from mcpmq.formats.hf.card import card
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.hf.names import module_of
from mcpmq.formats.hf.shards import SHARD_NBYTES, by_component, header_nbytes, shard_name
from mcpmq.formats.model_view import Declared
from mcpmq.plan import Step
from mcpmq.scheme import FLOAT_BYTES, FloatScheme
from mcpmq.system.safetensors_file import ALIGNMENT, DTYPES

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
PREFIX_NBYTES = 8  # of a safetensors file: the length of its header
RUNTIME = Runtime(cache_nbytes=2, resident=1.0, pass_logits=1)  # as transformers has it, in a type of two bytes
Parts = Callable[[Step], Mapping[str, int]]
"""From a packed weight to the bytes of its tensors, by their names in the module that holds it."""


def words_nbytes(rows: int, codes: int, bits: int) -> int:
    """Bytes of rows of codes in 32-bit words."""
    return 4 * rows * -(-codes * bits // 32)


@dataclass(slots=True)
class _Shards:
    """Files as they would grow."""

    sizes: list[int] = field(default_factory=list)
    components: list[str] = field(default_factory=list)
    placed: dict[str, int] = field(default_factory=dict)
    nbytes: int = 0
    aligned: int = 0  # of the last shard, what counts against the size of shards

    def begin(self, component: str, room: int) -> None:
        """A file with room for its header."""
        self.sizes.append(PREFIX_NBYTES + room + -room % ALIGNMENT)
        self.components.append(component)
        self.aligned = 0

    def add(self, tensors: Mapping[str, int], room: int) -> None:
        """The tensors of one weight, which stay together."""
        nbytes = sum(tensors.values())
        if self.aligned and self.aligned + nbytes > SHARD_NBYTES:
            self.begin(self.components[-1], room)
        self.placed |= dict.fromkeys(tensors, len(self.sizes) - 1)
        self.sizes[-1] += nbytes
        self.aligned += sum(one for one in tensors.values() if one % ALIGNMENT == 0)
        self.nbytes += nbytes

    def name(self, number: int) -> str:
        return shard_name(number, len(self.sizes))


def sized(
    model: Declared, settings: Mapping[str, Any], parts: Parts, readers: str, more: Mapping[str, int] | None = None
) -> LayoutForecast:
    """Every file of the folder; `more` are texts that only one format has."""
    shards, weights, steps = _Shards(), [], {step.name: step for step in model.steps}
    for component, specs in by_component(model).items():
        room = header_nbytes(model, specs)
        shards.begin(component, room)
        for spec in specs:
            tensors = _tensors(steps[spec.name], parts)
            shards.add(tensors, room)
            method = str(settings["quant_method"])
            stored_as = method if is_packed(steps[spec.name].scheme) else _dtype(steps[spec.name])
            weights.append(WeightForecast(spec.name, stored_as, sum(tensors.values()), ""))
    files = [
        FileForecast(shards.name(number), shards.components[number], nbytes)
        for number, nbytes in enumerate(shards.sizes)
    ]
    texts = {
        **{file.path: file.nbytes for file in model.artifact.manifest.files if file.path != CONFIG},
        **_texts(model, settings, readers),
        INDEX: _index_nbytes(shards),
        **(more or {}),
    }
    kinds = {file.path: file.component for file in model.artifact.manifest.files}
    files += [FileForecast(name, kinds.get(name, "model"), nbytes) for name, nbytes in texts.items()]
    return LayoutForecast(tuple(files), tuple(weights), RUNTIME)


def json_nbytes(value: Mapping[str, Any]) -> int:
    """Of a JSON file as it is written."""
    return len((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _texts(model: Declared, settings: Mapping[str, Any], readers: str) -> dict[str, int]:
    manifest, method = model.artifact.manifest, str(settings["quant_method"])
    return {
        CONFIG: json_nbytes({**model.config, "quantization_config": dict(settings)}),
        CARD: len(card(manifest, model.config, model.steps, method, readers).encode()),
    }


def _index_nbytes(shards: _Shards) -> int:
    weight_map = {name: shards.name(number) for name, number in sorted(shards.placed.items())}
    return json_nbytes({"metadata": {"total_size": shards.nbytes}, "weight_map": weight_map})


def _tensors(step: Step, parts: Parts) -> dict[str, int]:
    if is_packed(step.scheme):
        return {f"{module_of(step.spec.hub_name)}.{name}": nbytes for name, nbytes in parts(step).items()}
    return {step.spec.hub_name: prod(step.spec.shape) * _width(step)}


def _width(step: Step) -> int:
    if isinstance(step.scheme, FloatScheme):
        return FLOAT_BYTES[step.scheme.dtype]
    return dict(DTYPES.values())[step.dtype]


def _dtype(step: Step) -> str:
    return str(step.scheme or step.dtype)
