"""A quantized model as a folder that transformers loads: shards and their index, config.json, texts, model card."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mcpmq.artifact import CARD
from mcpmq.families.family import TensorSpec
from mcpmq.formats.hf.card import card
from mcpmq.formats.hf.names import module_of
from mcpmq.formats.hf.shards import SHARD_NBYTES, by_component, header_nbytes, shard_name
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import Quantized
from mcpmq.system.progress import Progress
from mcpmq.system.safetensors_file import GrowingFile

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
METADATA = {"format": "pt"}  # without it transformers takes the file for another framework's

Pack = Callable[[QTensor, str], Mapping[str, Tensor]]
"""From a weight, and the dtype it had, to the tensors of a format, by their names in the module that holds it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What one format adds to a folder."""

    settings: Mapping[str, Any]  # `quantization_config` in config.json
    pack: Pack
    readers: str  # of the card: what loads it, and what to know then


def write_model(
    quantized: Quantized, out: Path, layout: Layout, progress: Progress, shard_nbytes: int = SHARD_NBYTES
) -> dict[str, list[str]]:
    """Write a whole folder, one weight in memory at a time: component -> names of its files.

    A shard holds what sees or what speaks, never both, so that bytes on disk can be told apart by component.
    """
    with closing(_Shards(out, shard_nbytes)) as shards:
        for component, specs in by_component(quantized).items():
            shards.begin(component, header_nbytes(quantized, specs))
            for spec in progress(specs, f"writing {component}"):
                shards.add(tensors_of(quantized, spec, layout.pack))
        files = shards.finish()
        files["model"] = [*_copy(quantized, "model", out), *_write_texts(quantized, out, layout), shards.write_index()]
    if code := _copy(quantized, "code", out):
        files["code"] = code
    return files


def tensors_of(quantized: Quantized, spec: TensorSpec, pack: Pack) -> dict[str, Tensor]:
    """One weight as it is stored, by hub names: packed, or in its dtype as the original had it."""
    weight = quantized.load(spec.name)
    if isinstance(weight, QTensor):
        module, dtype = module_of(spec.hub_name), quantized.records[spec.name].dtype
        return {f"{module}.{name}": tensor for name, tensor in pack(weight, dtype).items()}
    return {spec.hub_name: weight.T if spec.transposed else weight}


@dataclass
class _Shards:
    """Files that grow until they are full; how many there are is known, and said in their names, at the end."""

    folder: Path
    most_nbytes: int
    components: list[str] = field(default_factory=list)  # of every shard
    placed: dict[str, int] = field(default_factory=dict)  # tensor -> shard
    nbytes: int = 0  # of all tensors
    growing: GrowingFile | None = None
    room: int = 0  # for the header of a shard

    def begin(self, component: str, room: int) -> None:
        """Let the next tensors go to another shard, and all shards have this room for their headers from now on."""
        if self.growing:
            self.growing.finish()
        self.growing, self.room = GrowingFile(self._unnamed(len(self.components)), room, METADATA), room
        self.components.append(component)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Those of one weight, which stay together."""
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        assert self.growing is not None
        if self.growing.nbytes and self.growing.nbytes + nbytes > self.most_nbytes:
            self.begin(self.components[-1], self.room)
        for name, tensor in tensors.items():
            self.growing.add(name, tensor)
            self.placed[name] = len(self.components) - 1
        self.nbytes += nbytes

    def finish(self) -> dict[str, list[str]]:
        """Complete the last and name all: component -> names of its files."""
        if self.growing:
            self.growing.finish()
        files: dict[str, list[str]] = {}
        for number, component in enumerate(self.components):
            self._unnamed(number).rename(self.folder / self._name(number))
            files.setdefault(component, []).append(self._name(number))
        return files

    def write_index(self) -> str:
        """Say which shard holds which tensor: the name of the file."""
        weight_map = {name: self._name(number) for name, number in sorted(self.placed.items())}
        write_json(self.folder / INDEX, {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map})
        return INDEX

    def close(self) -> None:
        """Close the file that still grows, if writing it failed."""
        if self.growing:
            self.growing.close()

    def _unnamed(self, number: int) -> Path:
        return self.folder / f"{number}.partial"

    def _name(self, number: int) -> str:
        return shard_name(number, len(self.components))


def _copy(quantized: Quantized, component: str, out: Path) -> list[str]:
    names = [file.name for file in quantized.artifact.files_of(component) if file.name != CONFIG]
    for name in names:
        shutil.copyfile(quantized.path / name, out / name)
    return names


def _write_texts(quantized: Quantized, out: Path, layout: Layout) -> tuple[str, str]:
    write_json(out / CONFIG, {**quantized.config, "quantization_config": dict(layout.settings)})
    method = str(layout.settings["quant_method"])
    text = card(quantized.artifact.manifest, quantized.config, quantized.steps, method, layout.readers)
    (out / CARD).write_text(text, encoding="utf-8")
    return CONFIG, CARD


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """As transformers writes its configuration: indented, in UTF-8."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
