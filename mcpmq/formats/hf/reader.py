"""Read a Hugging Face artifact without its engine: the inverse of `writer`, for the dequantized runner and tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcpmq.artifact import Artifact, Kind
from mcpmq.errors import ArtifactError
from mcpmq.families import family_named
from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats import FORMATS
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.hf.layout import HfLayout
from mcpmq.formats.hf.names import module_name
from mcpmq.qtensor import QTensor
from mcpmq.scheme import parse_scheme
from mcpmq.system.json_file import read_json
from mcpmq.system.safetensors_file import PACKED_DTYPES, TensorEntry, read_bytes, read_header


@dataclass(frozen=True)
class HuggingFaceArtifact:
    """An artifact opened for reading: weights load one at a time, by common name."""

    artifact: Artifact
    layout: HfLayout
    config: Mapping[str, Any]  # of the original
    quantization_config: Mapping[str, Any]  # of config.json
    specs: Mapping[str, TensorSpec]
    language: LanguageShape

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder that `export` wrote.

        Raises:
            ArtifactError: the artifact has another format.
        """
        artifact = Artifact.open(path)
        layout = layout_of(artifact.manifest.kind)
        if layout is None:
            supported = ", ".join(name for name in FORMATS if layout_of(name))
            raise ArtifactError(f"`{path}` is a {artifact.manifest.kind} artifact", f"expected one of: {supported}")
        if layout.with_activations and any(record.activation for record in artifact.manifest.weights):
            layout = layout.with_activations
        config = read_json(path / "config.json")
        found = [config.pop(key, {}) for key in layout.config_keys]
        family = family_named(artifact.manifest.family)
        architecture = family.parse_architecture(config)
        specs = {spec.name: spec for spec in family.tensor_specs(architecture)}
        return cls(artifact, layout, config, found[0], specs, architecture.language)

    def load(self, name: str) -> QTensor | Tensor:
        """Load a quantized weight, or an unquantized one as a tensor [out, in] in its dtype."""
        spec, scheme_name = self.specs[name], self._schemes[name]
        scheme = parse_scheme(scheme_name) if scheme_name else None
        stored = self.layout.stored_name(self.artifact.manifest.family, spec.hub_name)
        if not is_packed(scheme):
            tensor = self.layout.from_stored(_tensor(self._entries[stored]), spec, self.language)
            return tensor.T.contiguous() if spec.transposed else tensor
        return self.layout.unpack(self._module_tensors(module_name(stored)), scheme)

    def _module_tensors(self, module: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(f"{module}."): _tensor(entry)
            for name, entry in self._entries.items()
            if name.startswith(f"{module}.") and name != f"{module}.bias"
        }

    @cached_property
    def _schemes(self) -> dict[str, str | None]:
        return {record.name: record.scheme for record in self.artifact.manifest.weights}

    @cached_property
    def _entries(self) -> dict[str, TensorEntry]:
        files = sorted(self.artifact.path.glob("*.safetensors"))
        return {name: entry for file in files for name, entry in read_header(file, PACKED_DTYPES).items()}


def layout_of(kind: Kind) -> HfLayout | None:
    """Return the layout of a Hugging Face format; None for other kinds of artifacts."""
    if kind not in FORMATS:
        return None
    layout: HfLayout | None = getattr(import_module(f"mcpmq.formats.{kind.replace('-', '_')}"), "LAYOUT", None)
    return layout


def _tensor(entry: TensorEntry) -> Tensor:
    return torch.frombuffer(read_bytes(entry), dtype=getattr(torch, entry.torch_dtype)).reshape(entry.shape)
