"""Every tensor of a file, declared from shapes and schemes alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from mcpmq.families.family import LanguageShape, TensorSpec
from mcpmq.formats.gguf import BLOCK_COLUMNS
from mcpmq.formats.gguf.names import Names, names_of, part_of
from mcpmq.formats.model_view import Declared
from mcpmq.formats.shapes import stored_shape
from mcpmq.scheme import FloatScheme, GgmlScheme, IntegerScheme, Scheme

if TYPE_CHECKING:  # a forecast declares tensors without torch
    from torch import Tensor

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
    rows: tuple[int, ...] = ()  # of the source, where they are to stand otherwise; some may stand more than once
    values: tuple[float, ...] = ()  # zeros if there are none
    computed: "Callable[..., Tensor] | None" = None  # from the source and the others, which nothing quantizes
    others: tuple[str, ...] = ()  # common names
    reason: str = ""  # for what is computed, or stands otherwise

    @property
    def row_nbytes(self) -> int:
        block, nbytes = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * nbytes

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.row_nbytes)


def slots(quantized: Declared, components: set[str], names: Names, vision_ffn: int) -> Iterator[Slot]:
    """The slots of a file, in the order of the forward pass."""
    for spec in quantized.specs.values():
        if spec.component not in components:
            continue
        shape = stored_shape(spec, vision_ffn)
        kind = stored_type(spec, quantized.scheme(spec.name), quantized.records[spec.name].dtype)
        parts, heads = names_of(spec.name, names), _reordered_heads(spec, quantized.architecture.language)
        computed = names.computed.get(part_of(spec.name))
        if len(shape) == 5:  # a kernel [out, 3, frames, height, width]
            for frame, name in enumerate(parts):
                yield Slot(name, spec.name, (*shape[:2], *shape[3:]), kind, frame=frame)
            continue
        if len(shape) == 3:  # a kernel [channels, 1, tokens]
            shape = (shape[0], shape[2])
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
        return GGMLQuantizationType[scheme.type.upper()]
    return FLOAT_TYPES[scheme.dtype if isinstance(scheme, FloatScheme) else dtype]


def widened_ffn(quantized: Declared) -> int:
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
