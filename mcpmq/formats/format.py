"""The description that every format package declares as `FORMAT`, and the forecast of the files it writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mcpmq.artifact import Artifact, FormatName
from mcpmq.families.family import Family
from mcpmq.formats.model_view import ModelView
from mcpmq.plan import TensorPlan

if TYPE_CHECKING:  # plans are checked and forecast without torch
    from mcpmq.quantized_model import QuantizedModel

Engine = Literal["torch", "gguf", "onnx", "dequantized", "transformers"]
FLOAT_SCHEMES = ("f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class FileForecast:
    """One file that an export will write, and its exact size."""

    path: str  # relative to the artifact
    component: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class WeightForecast:
    """The stored type and size of one weight; `reason` is empty unless the stored type differs from the plan."""

    name: str
    stored_as: str  # the format's own name of the type: `Q4_0`, `MatMulNBits 4x32`
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class RuntimeMemory:
    """Memory parameters of the engine that runs a format."""

    kv_cache_element_nbytes: int
    resident_ratio: float  # resident bytes per byte of weights on disk
    logits_per_pass: int  # positions whose logits are allocated for one pass over a prompt


@dataclass(frozen=True, slots=True)
class FilesForecast:
    """Files and stored weights of an export, computed from headers."""

    files: tuple[FileForecast, ...]
    weights: tuple[WeightForecast, ...]
    runtime: RuntimeMemory

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


@dataclass(frozen=True, slots=True)
class FileProvenance:
    """Source checkpoint and recipe that one file of an artifact records."""

    file: str
    source_sha256: str  # empty if the file records none
    recipe_name: str  # likewise


def _no_limit(tensor: TensorPlan) -> str | None:
    return None


def _no_check(tensors: Sequence[TensorPlan]) -> None:
    return None


def _no_padding(quantized: "QuantizedModel") -> dict[str, tuple[int, ...]]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A byte layout: its requirements, the schemes it supports, and the functions that write it.

    write: (quantized, empty output folder, progress, **options) -> component -> paths relative to the folder
    forecast: (model) -> every file that `write` would write, to the byte; reads no weight and imports no torch
    shape_limit: (tensor) -> why a supported scheme cannot be stored for a tensor of this shape or role, else None
    check_model: (tensors) -> None; raises FormatError for a combination of tensors that the format cannot store
    padded_shapes: (quantized) -> [out, in] of every weight that is zero-padded to whole blocks, by common name
    split: (artifact, empty output folder, maximum bytes of a file) -> like `write`; None: its files cannot be split
    provenance: (artifact) -> the provenance that its files record; None: they record none
    """

    name: FormatName
    requires: tuple[str, ...]  # import names of the packages that write and run it
    engine: Engine
    min_runtime: str  # the oldest version that loads it, or the oldest that was tested
    schemes: tuple[str, ...]
    limits: str  # constraints on schemes, for hints
    recipes: Mapping[int, str] = field(default_factory=dict)  # recommended built-in recipes, by bits
    single_scheme: bool = False  # one scheme for all quantized weights of an artifact
    activations: tuple[str, ...] = ()  # schemes of quantized activations
    families: tuple[str, ...] | None = None  # with a model class in the software that loads it; None: all
    write: Callable[..., dict[str, list[str]]]
    forecast: Callable[[ModelView], FilesForecast]
    shape_limit: Callable[[TensorPlan], str | None] = _no_limit
    check_model: Callable[[Sequence[TensorPlan]], None] = _no_check
    padded_shapes: "Callable[[QuantizedModel], Mapping[str, tuple[int, ...]]]" = _no_padding
    split: Callable[[Artifact, Path, int], dict[str, list[str]]] | None = None
    provenance: Callable[[Artifact], Iterator[FileProvenance]] | None = None

    def unsupported_family(self, family: Family) -> str | None:
        """Return why the format does not support a family; None if it does."""
        if self.families is not None and family.name not in self.families:
            return f"{self.min_runtime} does not load this family from this format"
        return dict(family.unsupported_formats).get(self.name)

    def unsupported_reason(self, tensor: TensorPlan) -> str | None:
        """Return why the format cannot store this tensor with its scheme, naming alternatives; None if it can."""
        if tensor.scheme is None:
            return None
        if str(tensor.scheme) not in self.schemes:
            return f"{self.limits}; supported: {', '.join(f'`{scheme}`' for scheme in self.schemes)}, `keep`"
        return self.shape_limit(tensor)


def integer_schemes(
    bits: Sequence[int], group_sizes: Sequence[int | None], *, asymmetric: bool = False
) -> tuple[str, ...]:
    """Return the names of integer schemes: `int4-g32`, `int4-g32-asym`, ...; a group size of None is a whole row."""
    groups = ["row" if size is None else f"g{size}" for size in group_sizes]
    suffixes = ("", "-asym") if asymmetric else ("",)
    return tuple(f"int{width}-{group}{suffix}" for width in bits for group in groups for suffix in suffixes)
