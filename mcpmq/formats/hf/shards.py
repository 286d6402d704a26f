"""Distribute the tensors of a Hugging Face artifact over safetensors shards: computed from sizes, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcpmq.families.family import TensorSpec
from mcpmq.formats.hf.constraints import is_packed
from mcpmq.formats.model_view import ModelView
from mcpmq.system.safetensors_file import ALIGNMENT

MAX_SHARD_NBYTES = 5_000_000_000
MAX_HEADER_ENTRY_NBYTES = 160  # of one tensor, without the name of its weight
MAX_TENSORS_PER_WEIGHT = 6  # double quantization of bitsandbytes
PREFIX_NBYTES = 8  # of a safetensors file: the length of its header
LANGUAGE, SPEECH = "language", "speech"
ENCODERS = ("vision+projector", "audio+audio_projector")  # with the names of their components


@dataclass(slots=True)
class Shard:
    """One safetensors file: its component and its size so far."""

    component: str
    header_nbytes: int  # reserved
    nbytes: int = 0  # of all tensors
    aligned_nbytes: int = 0  # of tensors with a multiple of 8 bytes; the others are small and come last

    @property
    def file_nbytes(self) -> int:
        return PREFIX_NBYTES + self.header_nbytes + -self.header_nbytes % ALIGNMENT + self.nbytes


@dataclass(slots=True)
class ShardLayout:
    """Assign tensors to shards in the order in which they are added; the tensors of one weight stay together.

    A shard has at most `max_nbytes` bytes of tensors, unless one weight is larger. The writer and the size forecast
    both follow this layout.
    """

    max_nbytes: int = MAX_SHARD_NBYTES
    shards: list[Shard] = field(default_factory=list)
    shard_of: dict[str, int] = field(default_factory=dict)  # tensor -> index into `shards`

    def begin(self, component: str, header_nbytes: int) -> None:
        """Begin a shard; the shards that follow it reserve as many bytes for their headers."""
        self.shards.append(Shard(component, header_nbytes))

    def add(self, tensors: Mapping[str, int]) -> None:
        """Add the tensors of one weight, name -> bytes, to the last shard or to a new one."""
        nbytes, last = sum(tensors.values()), self.shards[-1]
        if last.aligned_nbytes and last.aligned_nbytes + nbytes > self.max_nbytes:
            self.begin(last.component, last.header_nbytes)
        shard = self.shards[-1]
        shard.nbytes += nbytes
        shard.aligned_nbytes += sum(size for size in tensors.values() if size % ALIGNMENT == 0)
        self.shard_of |= dict.fromkeys(tensors, len(self.shards) - 1)

    def file_name(self, index: int) -> str:
        """Return the name of a shard's file: Hugging Face counts from 1."""
        return f"model-{index + 1:05}-of-{len(self.shards):05}.safetensors"

    def files_by_component(self) -> dict[str, list[str]]:
        """Return the names of the files of every component."""
        files: dict[str, list[str]] = {}
        for index, shard in enumerate(self.shards):
            files.setdefault(shard.component, []).append(self.file_name(index))
        return files

    def index(self) -> dict[str, Any]:
        """Return the content of model.safetensors.index.json: the file of every tensor."""
        weight_map = {name: self.file_name(shard) for name, shard in sorted(self.shard_of.items())}
        return {"metadata": {"total_size": sum(shard.nbytes for shard in self.shards)}, "weight_map": weight_map}


def specs_by_component(model: ModelView) -> dict[str, list[TensorSpec]]:
    """Return the weights of the encoders, of language and of speech output; shards keep them apart, so that each has a
    size on disk."""
    components: dict[str, list[TensorSpec]] = {}
    for spec in model.specs.values():
        encoder = next((name for name in ENCODERS if spec.component in name.split("+")), LANGUAGE)
        components.setdefault(SPEECH if spec.component == SPEECH else encoder, []).append(spec)
    return components


def max_header_nbytes(model: ModelView, specs: list[TensorSpec]) -> int:
    """Return an upper bound for the header of a shard with these weights."""
    return sum(_max_entries_nbytes(model, spec) for spec in specs)


def _max_entries_nbytes(model: ModelView, spec: TensorSpec) -> int:
    tensors = MAX_TENSORS_PER_WEIGHT if is_packed(model.scheme(spec.name)) else 1
    return tensors * (len(spec.hub_name) + MAX_HEADER_ENTRY_NBYTES)
