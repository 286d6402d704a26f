"""Descriptions of the tensors of a GGUF file, from shapes and schemes alone."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from mcpmq.families.family import TensorSpec
from mcpmq.families.language_shape import LanguageShape
from mcpmq.formats.gguf import BLOCK_COLUMNS
from mcpmq.formats.gguf.names import EXPERT, TensorNames, gguf_names, name_in_layer
from mcpmq.formats.model_view import ModelView
from mcpmq.formats.padding import stored_shape
from mcpmq.scheme import FloatScheme, GgmlScheme, IntegerScheme, Scheme

if TYPE_CHECKING:  # a forecast needs no torch
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
class GgufTensor:
    """One tensor of a GGUF file and the weights that its values come from."""

    name: str
    source: str | None  # common name; None: the tensor holds `values`
    shape: tuple[int, ...]  # rows first, as in torch; zero-padded where it is larger than the source
    type: GGMLQuantizationType
    first_row: int = 0  # in the source
    frame: int | None = None  # temporal index in a kernel that covers several frames
    permuted_heads: int = 0  # heads whose rows are permuted for RoPE; 0: no permutation
    source_rows: tuple[int, ...] = ()  # rows of the source in a different order, with repetitions; empty: in order
    source_heads: tuple[int, ...] = ()  # equal parts of the source's columns in a different order; empty: in order
    values: tuple[float, ...] = ()  # empty: zeros
    compute: "Callable[[], Tensor] | None" = None  # of the values of a tensor without a source
    transform: "Callable[..., Tensor] | None" = None  # of the source and the extra sources, which are all floats
    extra_sources: tuple[str, ...] = ()  # common names
    stack: tuple[
        str, ...
    ] = ()  # common names of one matrix of every expert, all in this tensor; the first is the source
    reason: str = ""  # why the values or their order differ from the source

    @property
    def row_nbytes(self) -> int:
        block, nbytes = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * nbytes

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.row_nbytes)


def gguf_tensors(
    model: ModelView, components: Collection[str], names: TensorNames, vision_intermediate_size: int
) -> Iterator[GgufTensor]:
    """Yield the tensors of some components, in the order of the forward pass."""
    for spec in model.specs.values():
        if spec.component in components:
            shape = stored_shape(spec, vision_intermediate_size)
            kind = stored_type(spec, model.scheme(spec.name), model.records[spec.name].dtype)
            if len(shape) == 5:
                yield from _frames(spec, shape, kind, names)
            elif EXPERT.match(name_in_layer(spec.name)):
                yield from _expert_stacks(model, spec, kind, names)
            else:
                yield from _row_parts(spec, shape, kind, names, model.architecture.language)


def _frames(
    spec: TensorSpec, shape: tuple[int, ...], kind: GGMLQuantizationType, names: TensorNames
) -> Iterator[GgufTensor]:
    """Split a patch kernel [out, 3, frames, height, width] into one tensor per frame."""
    for frame, name in enumerate(gguf_names(spec.name, names)):
        yield GgufTensor(name, spec.name, (*shape[:2], *shape[3:]), kind, frame=frame)


def _expert_stacks(
    model: ModelView, spec: TensorSpec, kind: GGMLQuantizationType, names: TensorNames
) -> Iterator[GgufTensor]:
    """Yield the stack of a matrix of the first expert with those of the others: [experts, rows, columns]."""
    experts = model.architecture.language.experts
    layer, first, part = spec.name.partition(".experts.0.")
    if experts and first:
        stack = tuple(f"{layer}.experts.{expert}.{part}" for expert in range(experts.count))
        [name] = gguf_names(spec.name, names)
        yield GgufTensor(name, spec.name, (experts.count, *spec.shape), kind, stack=stack)


def _row_parts(
    spec: TensorSpec, shape: tuple[int, ...], kind: GGMLQuantizationType, names: TensorNames, language: LanguageShape
) -> Iterator[GgufTensor]:
    """Split a weight into one tensor per name; a depthwise kernel [channels, 1, tokens] becomes a matrix."""
    if len(shape) == 3 and shape[1] == 1:
        shape = (shape[0], shape[2])
    parts, heads = gguf_names(spec.name, names), _permuted_heads(spec, language)
    rows, transform = shape[0] // len(parts), names.transforms.get(name_in_layer(spec.name))
    for number, name in enumerate(parts):
        part_shape = (rows, *shape[1:])
        yield GgufTensor(name, spec.name, part_shape, kind, number * rows, permuted_heads=heads, transform=transform)


def _permuted_heads(spec: TensorSpec, shape: LanguageShape) -> int:
    heads = {"q": shape.num_heads, "k": shape.num_kv_heads}
    projection = spec.name.removesuffix(".bias").rpartition(".attention.")[2]
    return heads.get(projection, 0) if shape.permuted_rope and spec.component == "language" else 0


def stored_type(spec: TensorSpec, scheme: Scheme | None, dtype: str) -> GGMLQuantizationType:
    """Return the ggml type of a weight in the file; norms and biases are F32, which represents every dtype exactly."""
    if spec.role == "other":
        return GGMLQuantizationType.F32
    if isinstance(scheme, IntegerScheme):
        return INTEGER_TYPES[scheme.bits]
    if isinstance(scheme, GgmlScheme):
        return GGMLQuantizationType[scheme.name.upper()]
    return FLOAT_TYPES[scheme.dtype if isinstance(scheme, FloatScheme) else dtype]


def padded_intermediate_size(model: ModelView) -> int:
    """Return the intermediate size of the vision FFN in the file: a multiple of the largest block size.

    Padded rows of the up matrix are zero, so the padded columns of the down matrix have no effect. An intermediate size
    that equals the hidden size is also padded, because llama.cpp would swap the two matrices.
    """
    shape, block = model.architecture.vision, 1
    if shape is None:
        return 0
    for layer in range(shape.num_layers):
        name = f"vision.layers.{layer}.mlp.down"
        kind = stored_type(model.specs[name], model.scheme(name), model.records[name].dtype)
        block = max(block, GGML_QUANT_SIZES[kind][0])  # 1, 32 or 256: the largest is a multiple of the others
    size = -(-shape.intermediate_size // block) * block
    return size + max(block, BLOCK_COLUMNS) if size == shape.hidden_size else size
