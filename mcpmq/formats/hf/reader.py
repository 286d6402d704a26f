"""A Hugging Face artifact read by mcpmq itself: the inverse of `writer`, for engines that cannot, and for proof."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mcpmq.artifact import Artifact
from mcpmq.errors import ArtifactError
from mcpmq.families import family_named
from mcpmq.families.family import TensorSpec
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.hf.names import module_of
from mcpmq.qtensor import QTensor
from mcpmq.scheme import parse_scheme
from mcpmq.system.json_file import read_json
from mcpmq.system.safetensors_file import PACKED_DTYPES, Entry, read_bytes, read_header

KINDS = ("gptq", "awq", "bnb", "compressed-tensors")


@dataclass(frozen=True)
class HuggingFaceArtifact:
    """An artifact opened for reading: every weight by its common name, one at a time."""

    artifact: Artifact
    config: Mapping[str, Any]  # as the original had it
    settings: Mapping[str, Any]  # its `quantization_config`
    specs: Mapping[str, TensorSpec]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder that `export` wrote.

        Raises:
            ArtifactError: it is another kind of artifact.
        """
        artifact = Artifact.open(path)
        if artifact.manifest.kind not in KINDS:
            raise ArtifactError(f"`{path}` is a {artifact.manifest.kind} artifact", f"this reads {', '.join(KINDS)}")
        config = read_json(path / "config.json")
        settings = config.pop("quantization_config", {})
        family = family_named(artifact.manifest.family)
        return cls(
            artifact, config, settings, {spec.name: spec for spec in family.tensors(family.architecture(config))}
        )

    def load(self, name: str) -> QTensor | Tensor:
        """A weight as it was quantized; a kept one as a tensor [out, in] in its dtype."""
        spec, written = self.specs[name], self._schemes[name]
        scheme = parse_scheme(written) if written else None
        if not is_packed(scheme):
            tensor = _tensor(self._entries[spec.hub_name])
            return tensor.T.contiguous() if spec.transposed else tensor
        unpack = import_module(f"mcpmq.formats.{self.artifact.manifest.kind.replace('-', '_')}.packing").unpack
        weight: QTensor = unpack(self._parts(module_of(spec.hub_name)), scheme)
        return weight

    def _parts(self, module: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(f"{module}."): _tensor(entry)
            for name, entry in self._entries.items()
            if name.startswith(f"{module}.") and name != f"{module}.bias"
        }

    @cached_property
    def _schemes(self) -> dict[str, str | None]:
        return {record.name: record.scheme for record in self.artifact.manifest.weights}

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        files = sorted(self.artifact.path.glob("*.safetensors"))
        return {name: entry for file in files for name, entry in read_header(file, PACKED_DTYPES).items()}


def _tensor(entry: Entry) -> Tensor:
    return torch.frombuffer(read_bytes(entry), dtype=getattr(torch, entry.torch_dtype)).reshape(entry.shape)
