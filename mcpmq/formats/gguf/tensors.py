"""Every tensor of a file, declared from shapes and schemes, then packed one at a time; no code is changed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from mcpmq.families.family import Architecture, LanguageShape, TensorSpec
from mcpmq.formats.gguf import BLOCK_COLUMNS
from mcpmq.formats.gguf.names import Names, names_of, part_of
from mcpmq.grids.ggml import ggml_type
from mcpmq.qtensor import QTensor
from mcpmq.quantized import Quantized
from mcpmq.recipe import FloatScheme, GgmlScheme, IntegerScheme, Scheme

INTEGER_TYPES = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}
FLOAT_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
}


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a GGUF file and where it comes from; `first_row` counts in the source, not in the slot."""

    name: str
    source: str | None  # common name; None: it holds `values`
    shape: tuple[int, ...]  # rows first, as in torch; zeros fill what the source does not have
    type: GGMLQuantizationType
    first_row: int = 0
    frame: int | None = None  # of a patch that covers several images, the one that this is for
    heads: int = 0  # whose rows are reordered; 0: rows stay where they are
    values: tuple[float, ...] = ()  # zeros if there are none
    computed: Callable[[Tensor], Tensor] | None = None  # from the source, which nothing quantizes

    @property
    def row_nbytes(self) -> int:
        block, nbytes = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * nbytes

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.row_nbytes)


def slots(quantized: Quantized, components: set[str], names: Names, vision_ffn: int) -> Iterator[Slot]:
    """The slots of a file, in the order of the forward pass."""
    for spec in quantized.specs.values():
        if spec.component not in components:
            continue
        shape = _widened(spec, quantized.architecture, vision_ffn)
        kind = stored_type(spec, quantized.scheme(spec.name), quantized.records[spec.name].dtype)
        parts, heads = names_of(spec.name, names), _reordered_heads(spec, quantized.architecture.language)
        if computed := names.computed.get(part_of(spec.name)):
            shape = tuple(computed(torch.zeros(shape)).shape)
        if len(shape) == 5:  # a kernel [out, 3, frames, height, width]
            for frame, name in enumerate(parts):
                yield Slot(name, spec.name, (*shape[:2], *shape[3:]), kind, frame=frame)
            continue
        for number, name in enumerate(parts):
            rows = shape[0] // len(parts)
            yield Slot(name, spec.name, (rows, *shape[1:]), kind, number * rows, heads=heads, computed=computed)


def _reordered_heads(spec: TensorSpec, shape: LanguageShape) -> int:
    heads = {"q": shape.heads, "k": shape.kv_heads}
    projects = spec.name.removesuffix(".bias").rpartition(".attention.")[2]
    return heads.get(projects, 0) if shape.permuted_rope and spec.component == "language" else 0


def stored_type(spec: TensorSpec, scheme: Scheme | None, dtype: str) -> GGMLQuantizationType:
    """The type a weight has in the file; what is no matrix or table is F32, which holds any float exactly."""
    if spec.role == "other":
        return GGMLQuantizationType.F32
    if isinstance(scheme, IntegerScheme):
        return INTEGER_TYPES[scheme.bits]
    if isinstance(scheme, GgmlScheme):
        return ggml_type(scheme.type)
    return FLOAT_TYPES[scheme.dtype if isinstance(scheme, FloatScheme) else dtype]


def widened_ffn(quantized: Quantized) -> int:
    """The hidden width of the vision FFN in the file: whole blocks for the types that have blocks.

    Rows of zeros in the matrix above make activations that are zero, whatever the columns below hold. A width that
    equals the hidden size is avoided too: llama.cpp then takes the two matrices for each other.
    """
    shape, block = quantized.architecture.vision, 1
    if shape is None:
        return 0
    for layer in range(shape.layers):
        name = f"vision.layers.{layer}.mlp.down"
        kind = stored_type(quantized.specs[name], quantized.scheme(name), quantized.records[name].dtype)
        block = max(block, GGML_QUANT_SIZES[kind][0])  # 1, 32 or 256: the largest is a multiple of the others
    width = -(-shape.ffn // block) * block
    return width + max(block, BLOCK_COLUMNS) if width == shape.hidden else width


def _widened(spec: TensorSpec, architecture: Architecture, width: int) -> tuple[int, ...]:
    shape = spec.shape[::-1] if spec.transposed else spec.shape
    if spec.may_grow is None or architecture.sees.ffn == width:
        return shape
    return (width, *shape[1:]) if spec.may_grow == "rows" else (shape[0], width)


def pack(weight: QTensor | Tensor | None, slot: Slot) -> NDArray[np.uint8]:
    """The bytes of a slot: uint8 [..., bytes of a row]."""
    if weight is None and slot.values:
        weight = torch.tensor(slot.values)
    rows = _rows(weight, slot) if weight is not None else np.empty((0,) * len(slot.shape), np.uint8)
    if rows.shape == slot.byte_shape:
        return rows
    padded = np.zeros(slot.byte_shape, np.uint8)  # a block of zero bytes is a block of zeros in every type
    padded[tuple(slice(size) for size in rows.shape)] = rows
    return padded


def _rows(weight: QTensor | Tensor, slot: Slot) -> NDArray[np.uint8]:
    wanted = _order(slot)
    if isinstance(weight, Tensor):
        held = weight if slot.frame is None else weight[:, :, slot.frame]
        held = slot.computed(held) if slot.computed else held
        return _float_bytes(held[wanted], slot.type)
    codes = weight.codes[wanted].numpy()
    if isinstance(weight.scheme, GgmlScheme):
        return codes
    assert weight.scale is not None
    scale = weight.scale[wanted].numpy()
    return pack_integers(codes, scale, weight.scheme)


def _order(slot: Slot) -> slice | Tensor:
    """The source's rows of a slot. RoPE turns pairs of rows: the first and second halves of a head in transformers,
    neighbours in llama.cpp."""
    rows = slice(slot.first_row, slot.first_row + slot.shape[0])
    if not slot.heads:
        return rows
    return torch.arange(rows.start, rows.stop).reshape(slot.heads, 2, -1).transpose(1, 2).flatten()


def _float_bytes(weight: Tensor, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    converted = weight.float() if kind == GGMLQuantizationType.F32 else weight
    return converted.contiguous().view(torch.uint8).numpy()


def pack_integers(codes: NDArray[np.uint8], scale: NDArray[np.float16], scheme: IntegerScheme) -> NDArray[np.uint8]:
    """Symmetric codes [rows, columns] and scales [rows, groups] as Q4_0 or Q8_0 blocks: uint8 [rows, bytes of a row].

    A block has 32 columns and one scale; a wider group repeats its own. The last block is filled with zeros.
    Layout: block_q4_0 and block_q8_0 in ggml-common.h.
    """
    rows, columns = codes.shape
    blocks = -(-columns // BLOCK_COLUMNS)
    if missing := blocks * BLOCK_COLUMNS - columns:
        codes = np.pad(codes, ((0, 0), (0, missing)), constant_values=1 << (scheme.bits - 1))
    grouped = codes.reshape(rows, blocks, BLOCK_COLUMNS)
    group = np.arange(blocks) * BLOCK_COLUMNS // (scheme.group_size or columns)
    packed = np.empty((rows, blocks, 2 + BLOCK_COLUMNS * scheme.bits // 8), np.uint8)
    packed[..., :2] = np.ascontiguousarray(scale[:, group])[..., None].view(np.uint8)
    if scheme.bits == 8:
        np.bitwise_xor(grouped, 0x80, out=packed[..., 2:])  # from zero at 128 to two's complement
    else:
        np.left_shift(grouped[..., 16:], 4, out=packed[..., 2:])
        packed[..., 2:] |= grouped[..., :16]
    return packed.reshape(rows, -1)
