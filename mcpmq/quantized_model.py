"""The quantized artifact on disk: one safetensors file a block, codes still unpacked from any format's layout."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor

from mcpmq.artifact import Artifact, WeightRecord
from mcpmq.errors import ArtifactError
from mcpmq.families import family_named
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.grids.activation import InputGrid
from mcpmq.grids.codebook import scale_of
from mcpmq.plan import Step
from mcpmq.qtensor import PackedScale, QTensor
from mcpmq.recipe import Activation
from mcpmq.scheme import (
    CodebookScheme,
    FloatScheme,
    GgmlScheme,
    IntegerScheme,
    Scheme,
    parse_scheme,
)
from mcpmq.system.json_file import read_json
from mcpmq.system.safetensors_file import Entry, read_bytes, read_header, read_metadata, write_file

BLOCKS = "blocks"


@dataclass(frozen=True, slots=True)
class Findings:
    """What calibrating a block told: fields of weights' records, by common name, and how far each way of rounding that
    was tried took the block's outputs on held-out samples."""

    weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantized:
    """A quantized model opened for reading: every weight by its common name, one at a time."""

    artifact: Artifact
    config: Mapping[str, Any]
    architecture: Architecture
    specs: Mapping[str, TensorSpec]  # by common name, in the order of the forward pass

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder that `quantize` wrote.

        Raises:
            ArtifactError: it is another kind of artifact.
        """
        artifact = Artifact.open(path)
        if artifact.manifest.kind != "quantized":
            raise ArtifactError(f"`{path}` is a {artifact.manifest.kind} artifact", "export from a quantized one")
        config = read_json(path / "config.json")
        family = family_named(artifact.manifest.family)
        architecture = family.architecture(config)
        specs = {spec.name: spec for spec in family.tensors(architecture)}
        for record in artifact.manifest.weights:  # the family names no tensor that it only hands on
            specs.setdefault(record.name, TensorSpec(record.name, record.hub_name, record.shape))
        return cls(artifact, config, architecture, specs)

    @property
    def path(self) -> Path:
        return self.artifact.path

    @cached_property
    def records(self) -> Mapping[str, WeightRecord]:
        """What was decided about every weight, by common name."""
        return {record.name: record for record in self.artifact.manifest.weights}

    def scheme(self, name: str) -> Scheme | None:
        written = self.records[name].scheme
        return parse_scheme(written) if written else None

    def activation(self, name: str) -> Activation | None:
        """What the inputs of a matrix are rounded to."""
        found = self.records[name].activation
        return next(known for known in get_args(Activation) if known == found) if found else None

    def input_grids(self, name: str) -> tuple[InputGrid, ...]:
        """What the inputs of a matrix are rounded to, for all rows or for each equal share of them; none if to none."""
        activation, ranges = self.activation(name), self.records[name].input_ranges or ()
        return tuple(InputGrid.over(seen, activation) for seen in ranges) if activation else ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """What was done to every weight, as the plan had it."""
        return tuple(
            Step(self.specs[name], record.dtype, self.scheme(name), record.reason, self.activation(name))
            for name, record in self.records.items()
        )

    def load(self, name: str) -> QTensor | Tensor:
        """A weight as it was quantized; a kept or converted one as a tensor [out, in] in its dtype."""
        return read_weight(self._entries, self.specs[name], self.scheme(name))

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        files = sorted((self.path / BLOCKS).glob("*.safetensors"))
        return {key: entry for file in files for key, entry in read_header(file).items()}


def read_weight(entries: Mapping[str, Entry], spec: TensorSpec, scheme: Scheme | None) -> QTensor | Tensor:
    """A weight out of the entries of block files, as `write_block` put it there."""
    if scheme is None or isinstance(scheme, FloatScheme):
        return _part(entries[spec.name])
    codes, columns = _part(entries[f"{spec.name}|codes"]), spec.shape[0 if spec.transposed else 1]
    if isinstance(scheme, GgmlScheme):
        return QTensor(scheme, columns, codes)
    if isinstance(scheme, CodebookScheme):
        return _read_codebook(entries, spec.name, scheme, columns)
    zero = _part(entries[f"{spec.name}|zero"]) if not scheme.symmetric else None
    scale = _part(entries[f"{spec.name}|scale"])
    return QTensor(scheme, columns, unpack_codes(codes, scheme.bits, columns), scale, zero)


def _read_codebook(entries: Mapping[str, Entry], name: str, scheme: CodebookScheme, columns: int) -> QTensor:
    codes = unpack_codes(_part(entries[f"{name}|codes"]), 4, columns)
    blocks = _part(entries[f"{name}|scale_blocks"])
    packed = PackedScale(_part(entries[f"{name}|scale"]), blocks[1:], float(blocks[0]))
    return QTensor(scheme, columns, codes, scale_of(packed), packed_scale=packed)


def _part(entry: Entry) -> Tensor:
    return torch.frombuffer(read_bytes(entry), dtype=getattr(torch, entry.torch_dtype)).reshape(entry.shape)


def parts_of(name: str, weight: QTensor | Tensor) -> dict[str, Tensor]:
    """A weight as the tensors of a block's file."""
    if isinstance(weight, Tensor):
        return {name: weight.contiguous()}
    if isinstance(weight.scheme, CodebookScheme):
        return _parts_of_codebook(name, weight)
    bits = weight.scheme.bits if isinstance(weight.scheme, IntegerScheme) else 8
    parts = {
        f"{name}|codes": pack_codes(weight.codes, bits),
        f"{name}|scale": weight.scale,
        f"{name}|zero": weight.zero,
    }
    return {key: part for key, part in parts.items() if part is not None}


def _parts_of_codebook(name: str, weight: QTensor) -> dict[str, Tensor]:
    packed = weight.packed_scale
    assert packed is not None
    return {
        f"{name}|codes": pack_codes(weight.codes, 4),
        f"{name}|scale": packed.codes,
        f"{name}|scale_blocks": torch.cat([torch.tensor([packed.offset]), packed.largest]),
    }


def write_block(file: Path, weights: Mapping[str, QTensor | Tensor], findings: Findings | None = None) -> None:
    """Write one block's file, whole or not at all, and what calibrating told about it."""
    parts = {key: part for name, weight in weights.items() for key, part in parts_of(name, weight).items()}
    partial = file.with_suffix(".partial")
    write_file(partial, parts, {"findings": json.dumps(asdict(findings))} if findings else None)
    partial.replace(file)


def findings_in(file: Path) -> Findings:
    """What calibrating told about a block, from its file; nothing where nothing was calibrated."""
    return Findings(**json.loads(read_metadata(file).get("findings", "{}")))


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, columns]; of 4 bits two share a byte, the even column in the low half."""
    if bits == 8:
        return codes.contiguous()
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `pack_codes`."""
    if bits == 8:
        return packed
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :columns]
