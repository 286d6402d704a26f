"""Decide the scheme of every tensor from headers alone, before any weight is read."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from math import prod

from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.compression_notes import compression_notes
from mcpmq.checkpoint.recipe_settings import kept_specs, speech_notes
from mcpmq.errors import RecipeError
from mcpmq.families.blocks import block_name as block_name  # exported
from mcpmq.families.family import SmoothingMapping, TensorSpec
from mcpmq.recipe import CALIBRATED_ACTIVATIONS, Activation, Recipe
from mcpmq.scheme import CodebookScheme, FloatScheme, GgmlScheme, IntegerScheme, Scheme, SchemeChoice, SchemeRequest
from mcpmq.system.safetensors_file import PACKED_DTYPES

INTEGER_MATMUL_SCHEME = IntegerScheme(8, None)
COMPONENTS = {"vision", "projector", "audio", "audio_projector", "embedding", "language", "head"}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """The decision about one tensor; a `scheme` of None keeps its dtype."""

    spec: TensorSpec
    dtype: str  # of the checkpoint, as torch names it
    scheme: Scheme | None
    reason: str  # the glob that matched, or why none applies
    activation: Activation | None = None  # the dtype of the matrix's quantized inputs

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[out, in] of a matrix or table."""
        rows, columns = self.spec.shape
        return (columns, rows) if self.spec.transposed else (rows, columns)

    @property
    def adjacent_columns(self) -> int:
        """Columns that are adjacent in every format: those of a head where a format reorders heads, else all."""
        return self.spec.head_columns or self.matrix_shape[1]

    @property
    def has_input_range(self) -> bool:
        """True if the inputs are quantized over their range in the calibration samples."""
        return self.activation in CALIBRATED_ACTIVATIONS

    @property
    def is_quantized(self) -> bool:
        return self.scheme is not None and self.scheme.is_quantized

    @property
    def source_nbytes(self) -> int:
        return prod(self.spec.shape) * dict(PACKED_DTYPES.values())[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size in bytes with its scheme, without the overhead of a format."""
        if self.scheme is None:
            return self.source_nbytes
        if not self.scheme.is_quantized:  # such tensors have any number of dimensions
            return self.scheme.row_nbytes(prod(self.spec.shape))
        rows, columns = self.matrix_shape
        return rows * self.scheme.row_nbytes(columns)


@dataclass(frozen=True)
class Plan:
    """A recipe applied to every tensor of a checkpoint. Every plan that exists can be carried out."""

    checkpoint: Checkpoint
    recipe: Recipe
    tensors: tuple[TensorPlan, ...]
    smoothing_mappings: Mapping[str, tuple[SmoothingMapping, ...]] = field(default_factory=dict)  # by block
    notes: tuple[str, ...] = ()  # exceptions from the recipe, with their reasons

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def blocks(self) -> dict[str, tuple[TensorPlan, ...]]:
        """Tensors by the block that they are loaded and written with: `language.layers.0`, or the component."""
        blocks: dict[str, list[TensorPlan]] = {}
        for tensor in self.tensors:
            blocks.setdefault(block_name(tensor.name), []).append(tensor)
        return {name: tuple(tensors) for name, tensors in blocks.items()}

    @cached_property
    def smoothed_weights(self) -> frozenset[str]:
        """The matrices whose columns may take smoothing scales."""
        mappings = (mapping for block in self.smoothing_mappings.values() for mapping in block)
        return frozenset(name for mapping in mappings for name in mapping.balance_layers)


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Apply a recipe to every tensor of a checkpoint.

    A glob for a component that the model does not have is ignored: `vision.*` for a text-only model.

    Raises:
        RecipeError: a glob matches no weight, a scheme does not fit the shape of a weight, smoothing is requested and
            no smoothing mapping applies, or the checkpoint is not compressed as the recipe requests; see `kept_specs`.
    """
    _check_compression(checkpoint, recipe)
    tensors = tuple(_plan_tensor(checkpoint, recipe, spec) for spec in kept_specs(checkpoint, recipe))
    _check_globs(checkpoint, recipe, recipe.weights, {"matrix", "table"})
    _check_globs(checkpoint, recipe, recipe.activations, {"matrix"})
    notes = *compression_notes(checkpoint), *speech_notes(checkpoint, recipe), *_choice_notes(recipe, tensors)
    plan = Plan(checkpoint, recipe, tensors, notes=notes)
    return plan if recipe.smooth == "none" else _with_smoothing(plan)


def _check_compression(checkpoint: Checkpoint, recipe: Recipe) -> None:
    hint = "make the plan inside of `with compress(checkpoint, recipe)`"
    if (recipe.vocabulary is None) != (checkpoint.vocabulary is None):
        kept = "a trimmed vocabulary" if checkpoint.vocabulary else "all tokens"
        has = f"recipe `{recipe.name}` has {'a' if recipe.vocabulary else 'no'} [vocabulary]"
        raise RecipeError(f"{has}, the checkpoint has {kept}", hint)
    if recipe.layers != checkpoint.layers:
        layers = checkpoint.layers or "all layers"
        raise RecipeError(f"recipe `{recipe.name}` has {recipe.layers or 'no [layers]'}, the checkpoint {layers}", hint)
    if recipe.images != checkpoint.images:
        requested, limits = recipe.images or "nothing", checkpoint.images or "those of its files"
        raise RecipeError(f"recipe `{recipe.name}` has [images] with {requested}, the checkpoint has {limits}", hint)


def _check_globs(checkpoint: Checkpoint, recipe: Recipe, globs: Iterable[str], roles: Collection[str]) -> None:
    names = [name for spec in checkpoint.specs if spec.role in roles for name in _recipe_names(spec)]
    absent = COMPONENTS - {name.partition(".")[0] for spec in checkpoint.specs for name in _recipe_names(spec)}
    for glob in globs:
        if glob.partition(".")[0] not in absent and not any(fnmatchcase(name, glob) for name in names):
            components = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise RecipeError(
                f"`{glob}` in recipe `{recipe.name}` matches no weight that can be quantized",
                f"names of this checkpoint start with: {components}; `mcpmq plan CHECKPOINT` lists them",
            )


def _recipe_names(spec: TensorSpec) -> list[str]:
    return [name for name in (spec.name, spec.alias) if name]


def _plan_tensor(checkpoint: Checkpoint, recipe: Recipe, spec: TensorSpec) -> TensorPlan:
    dtype = checkpoint.dtype(spec)
    if spec.role == "other":
        return TensorPlan(spec, dtype, None, "neither matrix nor table")
    activation_glob = _last_match(recipe.activations, spec) if spec.role == "matrix" else None
    activation = recipe.activations[activation_glob] if activation_glob else None
    glob = _last_match(recipe.weights, spec)
    tensor = TensorPlan(spec, dtype, None, f'"{glob}"' if glob else "no glob matches", activation)
    tensor = _with_scheme(tensor, recipe.weights[glob] if glob else None)
    _check_tensor(tensor)
    return tensor


def _with_scheme(tensor: TensorPlan, request: SchemeRequest) -> TensorPlan:
    """Give a weight its scheme; of a choice, the first whose blocks divide its columns."""
    if not isinstance(request, SchemeChoice):
        return replace(tensor, scheme=request)
    columns, first = tensor.adjacent_columns, request.schemes[0]
    chosen = request.for_columns(columns)
    if chosen == first:
        return replace(tensor, scheme=chosen)
    reason = f"{tensor.reason}; {columns} columns are not a multiple of the {first.column_multiple} of {first}"
    return replace(tensor, scheme=chosen, reason=reason)


def _choice_notes(recipe: Recipe, tensors: Iterable[TensorPlan]) -> Iterator[str]:
    """Yield a note for every scheme that is not the first of its choice, with the number of its weights."""
    counts = Counter(
        (tensor.scheme, request.schemes[0])
        for tensor in tensors
        if (glob := _last_match(recipe.weights, tensor.spec)) and tensor.spec.role != "other"
        if isinstance(request := recipe.weights[glob], SchemeChoice) and tensor.scheme != request.schemes[0]
    )
    for (chosen, first), count in counts.items():
        needed = f"multiples of {first.column_multiple} columns"
        yield f"{chosen} instead of {first} for {count} weights: {first} needs {needed}"


def _last_match(globs: Iterable[str], spec: TensorSpec) -> str | None:
    names = _recipe_names(spec)
    return next((glob for glob in reversed(list(globs)) if any(fnmatchcase(name, glob) for name in names)), None)


def scheme_fits(tensor: TensorPlan) -> bool:
    """Return whether the columns are a multiple of the scheme's blocks, or zeros may pad the last block."""
    columns, scheme = tensor.adjacent_columns, tensor.scheme
    if scheme is None or columns % scheme.column_multiple == 0:
        return True
    return isinstance(scheme, GgmlScheme) and tensor.spec.paddable_axis == "columns"


def _check_tensor(tensor: TensorPlan) -> None:
    if tensor.activation and tensor.scheme != INTEGER_MATMUL_SCHEME:
        raise RecipeError(
            f"`{tensor.name}` has `{tensor.activation}` activations and `{tensor.scheme or tensor.dtype}` weights",
            f"integer matrix products need one scale per row: set it to `{INTEGER_MATMUL_SCHEME}` under [weights],"
            " or leave it out of [activations]",
        )
    if scheme_fits(tensor):
        return
    columns, scheme, line = tensor.adjacent_columns, tensor.scheme, tensor.reason.partition(";")[0]
    assert scheme is not None
    unit = "heads of " if tensor.spec.head_columns else ""
    raise RecipeError(
        f"`{tensor.name}` has {unit}{columns} columns, not a multiple of the {scheme.column_multiple} of `{scheme}`",
        f'use {_alternatives(scheme, columns)}: add `"{tensor.name}" = ...` after {line} in the recipe',
    )


def _alternatives(scheme: Scheme, columns: int) -> str:
    if isinstance(scheme, CodebookScheme):
        return "`keep`"
    return "`q8_0` or `iq4_nl`" if columns % 32 == 0 else "`int8-row` or `keep`"


def _with_smoothing(plan: Plan) -> Plan:
    """Add the smoothing mappings that apply; norms and biases that take scales are stored in float32."""
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    mappings: dict[str, list[SmoothingMapping]] = {}
    excluded: Counter[str] = Counter()
    for block, pattern, mapping in _candidate_mappings(plan, tensors):
        if reason := _excluded_because(mapping, tensors, block):
            excluded[f"{pattern.component}: no scales from `{pattern.smooth_layer}`, because {reason}"] += 1
        else:
            mappings.setdefault(block, []).append(mapping)
    if not mappings:
        raise RecipeError(
            f"recipe `{plan.recipe.name}` requests smoothing, and no smoothing mapping has only quantized weights",
            'use `smooth = "none"`, or quantize neighboring matrices',
        )
    scaled = {name for block in mappings.values() for mapping in block for name in _scaled_names(mapping)}
    return replace(
        plan,
        tensors=tuple(_store_in_float32(tensor) if tensor.name in scaled else tensor for tensor in plan.tensors),
        smoothing_mappings={block: tuple(found) for block, found in mappings.items()},
        notes=(*plan.notes, *(f"{reason} ({count} times)" for reason, count in excluded.items())),
    )


def _candidate_mappings(
    plan: Plan, tensors: Mapping[str, TensorPlan]
) -> Iterator[tuple[str, SmoothingMapping, SmoothingMapping]]:
    """Yield block, pattern and mapping of the block where all tensors exist and a balance layer is quantized."""
    for block, pattern in product(plan.blocks, plan.checkpoint.family.smoothing_mappings):
        mapping = pattern.in_block(block)
        if pattern.component != block.partition(".")[0]:
            continue
        exists = tensors.keys() >= {mapping.smooth_layer, *mapping.balance_layers}
        if exists and any(tensors[name].is_quantized for name in mapping.balance_layers):
            yield block, pattern, mapping


def _excluded_because(mapping: SmoothingMapping, tensors: Mapping[str, TensorPlan], block: str) -> str | None:
    """Return which matrix of a mapping would be rounded when it is multiplied by scales; None if none would be."""
    for tensor in (tensors[name] for name in (mapping.smooth_layer, *mapping.balance_layers)):
        if tensor.spec.role == "matrix" and not _keeps_scales(tensor):
            return f"`{tensor.name.removeprefix(block + '.')}` keeps {tensor.scheme or tensor.dtype}"
    return None


def _keeps_scales(tensor: TensorPlan) -> bool:
    stored = "f32" if tensor.dtype == "float32" and tensor.scheme is None else str(tensor.scheme)
    return tensor.is_quantized or stored == "f32"


def _scaled_names(mapping: SmoothingMapping) -> tuple[str, ...]:
    return mapping.smooth_layer, f"{mapping.smooth_layer}.bias", *mapping.balance_layers


def _store_in_float32(tensor: TensorPlan) -> TensorPlan:
    if tensor.spec.role != "other":
        return tensor
    return replace(tensor, scheme=FloatScheme("f32"), reason="takes smoothing scales")
