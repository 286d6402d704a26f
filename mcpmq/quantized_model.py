"""The quantized model on disk: one safetensors file per block, with codes in no particular format's layout."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mcpmq.artifact import Artifact, WeightRecord
from mcpmq.errors import ArtifactError
from mcpmq.families import family_named
from mcpmq.families.family import Architecture, TensorSpec
from mcpmq.grids.activation import ActivationGrid, InputGrid, TokenGrid
from mcpmq.grids.codebook import dequantize_scale
from mcpmq.plan import TensorPlan
from mcpmq.qtensor import CodebookTensor, DoubleQuantScale, GgmlTensor, IntegerTensor, QTensor
from mcpmq.recipe import TOKENS, Activation
from mcpmq.scheme import (
    CodebookScheme,
    FloatScheme,
    GgmlScheme,
    IntegerScheme,
    Scheme,
    parse_scheme,
)
from mcpmq.system.durable_file import move_durably
from mcpmq.system.json_file import read_json
from mcpmq.system.safetensors_file import PACKED_DTYPES, TensorEntry, read_bytes, read_header, read_metadata

BLOCKS_DIRECTORY = "blocks"
CHUNK_WEIGHTS = 1 << 22  # of the rows that are packed at a time


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """The results of calibrating one block.

    weights: fields of the weights' records, by common name.
    errors: the error of the block's outputs on held-out samples, by candidate.
    """

    weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model that is open for reading, one weight at a time by its common name."""

    artifact: Artifact
    config: Mapping[str, Any]
    architecture: Architecture
    specs: Mapping[str, TensorSpec]  # by common name, in the order of the forward pass

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a folder that `quantize` wrote.

        Raises:
            ArtifactError: the folder has another kind of artifact, or its manifest lacks weights of the configuration.
        """
        artifact = Artifact.open(path)
        if artifact.manifest.kind != "quantized":
            raise ArtifactError(f"`{path}` is a {artifact.manifest.kind} artifact", "use the quantized model")
        config = read_json(artifact.path / "config.json")
        family = family_named(artifact.manifest.family)
        architecture = family.parse_architecture(config)
        specs = {spec.name: spec for spec in family.tensor_specs(architecture)}
        _check_records(path, {record.name: record.shape for record in artifact.manifest.weights}, specs)
        for record in artifact.manifest.weights:  # a family does not list the tensors that pass through
            specs.setdefault(record.name, TensorSpec(record.name, record.hub_name, record.shape))
        return cls(artifact, config, architecture, specs)

    @property
    def path(self) -> Path:
        return self.artifact.path

    @cached_property
    def records(self) -> Mapping[str, WeightRecord]:
        """The manifest's record of every weight, by common name."""
        return {record.name: record for record in self.artifact.manifest.weights}

    def scheme(self, name: str) -> Scheme | None:
        """Return the scheme of a weight; None if it keeps its dtype."""
        text = self.records[name].scheme
        return parse_scheme(text) if text else None

    def activation(self, name: str) -> Activation | None:
        """Return the dtype of a matrix's quantized inputs; None if they are not quantized."""
        text = self.records[name].activation
        return next(known for known in get_args(Activation) if known == text) if text else None

    def input_grids(self, name: str) -> tuple[InputGrid, ...]:
        """Return the grids of a matrix's quantized inputs: one for all rows, or one for each equal part of the rows."""
        return (TokenGrid(),) if self.activation(name) == TOKENS else self.activation_grids(name)

    def activation_grids(self, name: str) -> tuple[ActivationGrid, ...]:
        """Return the grids of `input_grids` that cover calibrated ranges; () for a matrix without these."""
        activation, ranges = self.activation(name), self.records[name].input_ranges or ()
        return tuple(ActivationGrid.from_range(one, activation) for one in ranges) if activation else ()

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        """Every weight as it was planned."""
        return tuple(
            TensorPlan(self.specs[name], record.dtype, self.scheme(name), record.reason, self.activation(name))
            for name, record in self.records.items()
        )

    def load(self, name: str) -> QTensor | Tensor:
        """Load a quantized weight, or a kept or converted one as a tensor [out, in] in its dtype."""
        return read_weight(self._entries, self.specs[name], self.scheme(name))

    def row_chunks(self, name: str) -> Iterator[QTensor]:
        """Yield a weight on an integer grid or in ggml's blocks in chunks of rows."""
        weight = self.load(name)
        assert isinstance(weight, QTensor)
        step = max(1, CHUNK_WEIGHTS // weight.shape[1])
        yield from (weight.slice_rows(slice(row, row + step)) for row in range(0, weight.rows, step))

    @cached_property
    def _entries(self) -> dict[str, TensorEntry]:
        files = sorted((self.path / BLOCKS_DIRECTORY).glob("*.safetensors"))
        return {key: entry for file in files for key, entry in read_header(file, PACKED_DTYPES).items()}


def read_weight(entries: Mapping[str, TensorEntry], spec: TensorSpec, scheme: Scheme | None) -> QTensor | Tensor:
    """Read a weight from the entries of block files, as `write_block` stored it."""
    match scheme:
        case None | FloatScheme():
            return _read_tensor(entries[spec.name])
        case IntegerScheme():
            return _read_integer(entries, spec, scheme)
        case CodebookScheme():
            return _read_codebook(entries, spec, scheme)
        case GgmlScheme():
            return GgmlTensor(scheme, _columns(spec), _read_tensor(entries[f"{spec.name}|codes"]))


def _columns(spec: TensorSpec) -> int:
    return spec.shape[0 if spec.transposed else 1]


def _read_integer(entries: Mapping[str, TensorEntry], spec: TensorSpec, scheme: IntegerScheme) -> IntegerTensor:
    codes = unpack_codes(_read_tensor(entries[f"{spec.name}|codes"]), scheme.bits, _columns(spec))
    zero_point = None if scheme.symmetric else _read_tensor(entries[f"{spec.name}|zero"])
    return IntegerTensor(scheme, codes, _read_tensor(entries[f"{spec.name}|scale"]), zero_point)


def _read_codebook(entries: Mapping[str, TensorEntry], spec: TensorSpec, scheme: CodebookScheme) -> CodebookTensor:
    codes = unpack_codes(_read_tensor(entries[f"{spec.name}|codes"]), scheme.bits, _columns(spec))
    blocks = _read_tensor(entries[f"{spec.name}|scale_blocks"])
    stored = DoubleQuantScale(_read_tensor(entries[f"{spec.name}|scale"]), blocks[1:], float(blocks[0]))
    return CodebookTensor(scheme, codes, dequantize_scale(stored), stored)


def _read_tensor(entry: TensorEntry) -> Tensor:
    return torch.frombuffer(read_bytes(entry), dtype=getattr(torch, entry.torch_dtype)).reshape(entry.shape)


def weight_parts(name: str, weight: QTensor | Tensor) -> dict[str, Tensor]:
    """Return the tensors of a block's file that store a weight."""
    match weight:
        case Tensor():
            return {name: weight.contiguous()}
        case IntegerTensor():
            parts = {"codes": pack_codes(weight.codes, weight.scheme.bits), "scale": weight.scale}
            parts |= {} if weight.zero_point is None else {"zero": weight.zero_point}
        case CodebookTensor():
            parts = {"codes": pack_codes(weight.codes, weight.scheme.bits), **_double_quant_parts(weight)}
        case GgmlTensor():
            parts = {"codes": weight.blocks}
    return {f"{name}|{key}": part.contiguous() for key, part in parts.items()}


def _double_quant_parts(weight: CodebookTensor) -> dict[str, Tensor]:
    stored = weight.double_quant
    assert stored is not None
    return {"scale": stored.codes, "scale_blocks": torch.cat([torch.tensor([stored.offset]), stored.absmax])}


def write_block(file: Path, weights: Mapping[str, QTensor | Tensor], result: CalibrationResult | None = None) -> None:
    """Write the file of one block atomically, with the results of its calibration in the metadata."""
    parts = {key: part for name, weight in weights.items() for key, part in weight_parts(name, weight).items()}
    partial = file.with_suffix(".partial")
    try:
        save_file(parts, partial, {"findings": json.dumps(asdict(result))} if result else None)
    except SafetensorError as error:
        raise _system_error(error, partial) from error
    move_durably(partial, file)


def _system_error(error: SafetensorError, file: Path) -> Exception:
    """Return the OSError that safetensors reports as text, `File too large (os error 27)`, or the error itself."""
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(file)) if found else error


class BlockWriter(Protocol):
    """A function with the interface of `write_block`."""

    def __call__(
        self, file: Path, weights: Mapping[str, QTensor | Tensor], result: CalibrationResult | None = None
    ) -> None: ...


def read_calibration_result(file: Path) -> CalibrationResult:
    """Read the results of calibrating a block from its file; empty if it was not calibrated."""
    return CalibrationResult(**json.loads(read_metadata(file).get("findings", "{}")))


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes uint8 [rows, columns]: with at most 4 bits two codes in a byte, the even column in the low nibble."""
    if bits > 4:
        return codes.contiguous()
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    pairs = codes.flatten().view(torch.int16)  # whole vectors of pairs: the even column is in the low byte
    return (pairs | pairs >> 4).to(torch.uint8).reshape(len(codes), -1)


def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack the codes of `pack_codes`: uint8 [rows, columns]."""
    if bits > 4:
        return packed
    pairs = packed.to(torch.int16)
    return ((pairs | pairs << 4) & 0x0F0F).view(torch.uint8)[:, :columns]


def _check_records(path: str | Path, shapes: Mapping[str, tuple[int, ...]], specs: Mapping[str, TensorSpec]) -> None:
    """Check that the manifest of a quantized model lists the weights of its configuration."""
    for name, spec in specs.items():
        if shapes.get(name) != spec.shape:
            found = f"has the shape {list(shapes[name])}" if name in shapes else "is not listed"
            raise ArtifactError(
                f"the manifest of `{path}` and its config.json differ: `{name}` {found}, expected {list(spec.shape)}",
                "quantize the checkpoint again",
            )
