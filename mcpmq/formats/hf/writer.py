"""Write a quantized model as a folder that transformers loads: shards, index, config.json, text files, model card."""

import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mcpmq.families.family import TensorSpec
from mcpmq.formats.hf.layout import HfLayout
from mcpmq.formats.hf.names import module_name
from mcpmq.formats.hf.shards import MAX_SHARD_NBYTES, ShardLayout, max_header_nbytes, specs_by_component
from mcpmq.qtensor import QTensor
from mcpmq.quantized_model import QuantizedModel
from mcpmq.system.progress import Progress
from mcpmq.system.safetensors_file import SafetensorsWriter

METADATA = {"format": "pt"}  # without it transformers takes the file for another framework's


def write_model(
    quantized: QuantizedModel, out: Path, layout: HfLayout, progress: Progress, max_shard_nbytes: int = MAX_SHARD_NBYTES
) -> dict[str, list[str]]:
    """Write the whole folder, one weight in memory at a time: component -> names of its files."""
    with closing(_ShardWriter(out, ShardLayout(max_shard_nbytes))) as shards:
        for component, specs in specs_by_component(quantized).items():
            shards.layout.begin(component, max_header_nbytes(quantized, specs))
            for spec in progress(specs, f"writing {component}"):
                shards.add(packed_tensors(quantized, spec, layout))
        shards.finish()
    files = shards.layout.files_by_component()
    texts = layout.text_files(quantized, shards.layout)
    files["model"] = [*_copy(quantized, "model", out, texts), *texts]
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    if code := _copy(quantized, "code", out, texts):
        files["code"] = code
    return files


def packed_tensors(quantized: QuantizedModel, spec: TensorSpec, layout: HfLayout) -> dict[str, Tensor]:
    """Return the tensors that store a weight, by their names in the files: packed, or floats in the planned dtype."""
    weight, stored = quantized.load(spec.name), layout.stored_name(quantized.artifact.manifest.family, spec.hub_name)
    if isinstance(weight, QTensor):
        module, dtype = module_name(stored), quantized.records[spec.name].dtype
        return {f"{module}.{name}": tensor for name, tensor in layout.pack(weight, dtype).items()}
    values = weight.T if spec.transposed else weight
    return {stored: layout.to_stored(values, spec, quantized.architecture.language)}


@dataclass
class _ShardWriter:
    """Write tensors into the shards of a layout; file names contain the number of shards, so they are set last."""

    folder: Path
    layout: ShardLayout
    _files: list[SafetensorsWriter] = field(default_factory=list)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of one weight."""
        self.layout.add({name: tensor.nbytes for name, tensor in tensors.items()})
        if len(self._files) < len(self.layout.shards):
            self._begin_file()
        for name, tensor in tensors.items():
            self._files[-1].add(name, tensor)

    def finish(self) -> None:
        """Complete the last file and name all of them."""
        if self._files:
            self._files[-1].finish()
        for index in range(len(self._files)):
            self._partial_file(index).rename(self.folder / self.layout.file_name(index))

    def close(self) -> None:
        """Close the file that is open if writing failed."""
        if self._files:
            self._files[-1].close()

    def _begin_file(self) -> None:
        if self._files:
            self._files[-1].finish()
        index = len(self._files)
        header_nbytes = self.layout.shards[index].header_nbytes
        self._files.append(SafetensorsWriter(self._partial_file(index), header_nbytes, METADATA))

    def _partial_file(self, index: int) -> Path:
        return self.folder / f"{index}.partial"


def _copy(quantized: QuantizedModel, component: str, out: Path, written: Mapping[str, str]) -> list[str]:
    """Copy the files of a component, except the newly written ones."""
    names = [file.name for file in quantized.artifact.component_files(component) if file.name not in written]
    for name in names:
        shutil.copyfile(quantized.path / name, out / name)
    return names
