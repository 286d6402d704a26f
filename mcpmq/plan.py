"""What will be done to every weight, decided from headers alone, before any weight is read."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from math import prod

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import RecipeError
from mcpmq.families.family import Fold, TensorSpec
from mcpmq.recipe import Activation, Recipe
from mcpmq.scheme import (
    CODEBOOK_COLUMNS,
    CodebookScheme,
    FloatScheme,
    GgmlScheme,
    IntegerScheme,
    Scheme,
)
from mcpmq.system.safetensors_file import DTYPES

BESIDE_INTEGER_INPUTS = IntegerScheme(8, None)
COMPONENTS = {"vision", "projector", "embedding", "language", "head"}


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor and its fate; `scheme` is None where it keeps its dtype, and `reason` says why."""

    spec: TensorSpec
    dtype: str  # of the source, as torch calls it
    scheme: Scheme | None
    reason: str  # the glob that decided, or why none applies
    activation: Activation | None = None  # what its inputs are rounded to while it multiplies

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """[out, in] of a matrix or table."""
        rows, columns = self.spec.shape
        return (columns, rows) if self.spec.transposed else (rows, columns)

    @property
    def on_a_grid(self) -> bool:
        return isinstance(self.scheme, IntegerScheme | GgmlScheme)

    @property
    def source_nbytes(self) -> int:
        return prod(self.spec.shape) * dict(DTYPES.values())[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size on the scheme, before what a format adds."""
        if self.scheme is None:
            return self.source_nbytes
        if isinstance(self.scheme, FloatScheme):
            return self.scheme.row_nbytes(prod(self.spec.shape))
        rows, columns = self.matrix_shape
        return rows * self.scheme.row_nbytes(columns)


@dataclass(frozen=True)
class Plan:
    """A recipe and a checkpoint, decided for every tensor. If it exists, it can be carried out."""

    checkpoint: Checkpoint
    recipe: Recipe
    steps: tuple[Step, ...]
    folds: Mapping[str, tuple[Fold, ...]] = field(default_factory=dict)  # by block: where scales may move
    notes: tuple[str, ...] = ()  # what is not done as a recipe of this kind would have it, and why

    @property
    def nbytes(self) -> int:
        return sum(step.nbytes for step in self.steps)

    @cached_property
    def blocks(self) -> dict[str, tuple[Step, ...]]:
        """Steps by the block they are loaded and written with: `language.layers.0`, or the component."""
        blocks: dict[str, list[Step]] = {}
        for step in self.steps:
            blocks.setdefault(block_of(step.name), []).append(step)
        return {name: tuple(steps) for name, steps in blocks.items()}

    @cached_property
    def smoothed(self) -> frozenset[str]:
        """Matrices that may take scales in their columns."""
        return frozenset(name for folds in self.folds.values() for fold in folds for name in fold.into)


def block_of(name: str) -> str:
    """`language.layers.0.mlp.up` -> `language.layers.0`; what is in no layer goes with its component, but for a merger
    between layers."""
    parts = name.split(".")
    if parts[1:2] == ["merger"]:
        return ".".join(parts[:2])
    return ".".join(parts[:3]) if len(parts) > 2 and parts[1] == "layers" else parts[0]


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Decide every tensor. A line for a whole component that this model does not have concerns nothing: `vision.*`
    where the model reads text only.

    Raises:
        RecipeError: a line matches no weight, a scheme does not fit a weight, or there is nothing to smooth.
    """
    steps = tuple(_step(checkpoint, recipe, spec) for spec in checkpoint.specs)
    _refuse_unmatched(checkpoint, recipe, recipe.weights, {"matrix", "table"})
    _refuse_unmatched(checkpoint, recipe, recipe.activations, {"matrix"})
    plan = Plan(checkpoint, recipe, steps)
    return plan if recipe.smooth == "none" else _smoothed(plan)


def _refuse_unmatched(checkpoint: Checkpoint, recipe: Recipe, globs: Iterable[str], roles: Collection[str]) -> None:
    names = [name for spec in checkpoint.specs if spec.role in roles for name in _names(spec)]
    absent = COMPONENTS - {name.partition(".")[0] for spec in checkpoint.specs for name in _names(spec)}
    for glob in globs:
        if glob.partition(".")[0] not in absent and not any(fnmatchcase(name, glob) for name in names):
            components = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise RecipeError(
                f"`{glob}` in recipe `{recipe.name}` matches no weight that can be quantized",
                f"names here begin with: {components}; `mcpmq plan CHECKPOINT` lists them",
            )


def _names(spec: TensorSpec) -> list[str]:
    return [name for name in (spec.name, spec.also) if name]


def _step(checkpoint: Checkpoint, recipe: Recipe, spec: TensorSpec) -> Step:
    dtype = checkpoint.entries[spec.name].torch_dtype
    if spec.role == "other":
        return Step(spec, dtype, None, "no matrix or table")
    glob, activation = _last_match(recipe.weights, spec), None
    if spec.role == "matrix" and (rounded := _last_match(recipe.activations, spec)):
        activation = recipe.activations[rounded]
    if glob is None:
        step = Step(spec, dtype, None, "nothing in the recipe matches", activation)
    else:
        step = Step(spec, dtype, recipe.weights[glob], f'"{glob}"', activation)
    _refuse_misfit(step)
    return step


def _last_match(globs: Iterable[str], spec: TensorSpec) -> str | None:
    names = _names(spec)
    return next((glob for glob in reversed(list(globs)) if any(fnmatchcase(name, glob) for name in names)), None)


def fits(step: Step) -> bool:
    """Whether a scheme's blocks divide the columns of a weight, or zeros may fill up the last of them."""
    columns, scheme = step.matrix_shape[1], step.scheme
    if isinstance(scheme, CodebookScheme):
        return columns % CODEBOOK_COLUMNS == 0
    if not isinstance(scheme, GgmlScheme) or columns % scheme.block_columns == 0:
        return True
    return step.spec.may_grow == "columns"


def _refuse_misfit(step: Step) -> None:
    if step.activation and step.scheme != BESIDE_INTEGER_INPUTS:
        raise RecipeError(
            f"`{step.name}` is to multiply inputs of `{step.activation}`, and its own numbers are"
            f" `{step.scheme or step.dtype}`",
            f"integers that meet integers have one scale a row: give it `{BESIDE_INTEGER_INPUTS}` under [weights],"
            " or leave it out of [activations]",
        )
    if fits(step):
        return
    columns = step.matrix_shape[1]
    if isinstance(step.scheme, CodebookScheme):
        raise RecipeError(
            f"`{step.name}` has {columns} columns, not a multiple of the {CODEBOOK_COLUMNS} of `{step.scheme}`",
            f'write `"{step.name}" = "keep"` after {step.reason} in the recipe',
        )
    assert isinstance(step.scheme, GgmlScheme)
    suited = "`q8_0` or `iq4_nl`" if columns % 32 == 0 else "`int8-row` or `keep`"
    raise RecipeError(
        f"`{step.name}` has {columns} columns, not a multiple of the {step.scheme.block_columns} of `{step.scheme}`",
        f'give it {suited} in the recipe: add `"{step.name}" = ...` after {step.reason}',
    )


def _smoothed(plan: Plan) -> Plan:
    """The plan with the places where scales may move, and with the norms and biases there in 32 bits to take them."""
    steps = {step.name: step for step in plan.steps}
    folds: dict[str, list[Fold]] = {}
    left_out: Counter[str] = Counter()
    for block, pattern in product(plan.blocks, plan.checkpoint.family.folds):
        fold = pattern.within(block)
        if pattern.component != block.partition(".")[0] or not steps.keys() >= {fold.source, *fold.into}:
            continue
        if not any(steps[name].on_a_grid for name in fold.into):
            continue
        matrices = [steps[name] for name in (fold.source, *fold.into) if steps[name].spec.role == "matrix"]
        if loose := [step for step in matrices if not _keeps_scales(step)]:
            rounds = f"`{loose[0].name.removeprefix(block + '.')}` keeps {loose[0].scheme or loose[0].dtype}"
            left_out[f"{pattern.component}: no scales from `{pattern.source}`, for {rounds}"] += 1
        else:
            folds.setdefault(block, []).append(fold)
    if not folds:
        raise RecipeError(
            f"recipe `{plan.recipe.name}` asks for smoothing, and no scale can move between the weights it quantizes",
            'write `smooth = "none"`, or put neighbouring matrices on grids',
        )
    moved = [fold for found in folds.values() for fold in found]
    takers = {name for fold in moved for name in (fold.source, f"{fold.source}.bias", *fold.into)}
    return replace(
        plan,
        steps=tuple(_in_32_bits(step) if step.name in takers else step for step in plan.steps),
        folds={block: tuple(found) for block, found in folds.items()},
        notes=tuple(f"{what} ({count} times)" for what, count in left_out.items()),
    )


def _keeps_scales(step: Step) -> bool:
    """Whether a matrix can be multiplied by scales without being rounded otherwise than it is anyway."""
    kept_in = "f32" if step.dtype == "float32" and step.scheme is None else str(step.scheme)
    return step.on_a_grid or kept_in == "f32"


def _in_32_bits(step: Step) -> Step:
    if step.spec.role != "other":
        return step
    return replace(step, scheme=FloatScheme("f32"), reason="takes the scales of smoothing")
