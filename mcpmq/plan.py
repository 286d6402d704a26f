"""What will be done to every weight, decided from headers alone, before any weight is read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import RecipeError
from mcpmq.families.family import TensorSpec
from mcpmq.recipe import Activation, GgmlScheme, IntegerScheme, Recipe, Scheme
from mcpmq.safetensors_file import DTYPES

BESIDE_INTEGER_INPUTS = IntegerScheme(8, None)


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
    def source_nbytes(self) -> int:
        return prod(self.spec.shape) * dict(DTYPES.values())[self.dtype]

    @property
    def nbytes(self) -> int:
        """Size on the scheme, before what a format adds."""
        if self.scheme is None:
            return self.source_nbytes
        rows, columns = self.matrix_shape
        return rows * self.scheme.row_nbytes(columns)


@dataclass(frozen=True)
class Plan:
    """A recipe and a checkpoint, decided for every tensor. If it exists, it can be carried out."""

    checkpoint: Checkpoint
    recipe: Recipe
    steps: tuple[Step, ...]

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


def block_of(name: str) -> str:
    """`language.layers.0.mlp.up` -> `language.layers.0`; what is in no layer goes with its component."""
    parts = name.split(".")
    return ".".join(parts[:3]) if len(parts) > 2 and parts[1] == "layers" else parts[0]


def make_plan(checkpoint: Checkpoint, recipe: Recipe) -> Plan:
    """Decide every tensor.

    Raises:
        RecipeError: a line matches no weight, or a scheme does not fit a weight.
    """
    steps = tuple(_step(checkpoint, recipe, spec) for spec in checkpoint.specs)
    _refuse_unmatched(recipe, recipe.weights, [step.name for step in steps if step.spec.role != "other"])
    _refuse_unmatched(recipe, recipe.activations, [step.name for step in steps if step.spec.role == "matrix"])
    return Plan(checkpoint, recipe, steps)


def _refuse_unmatched(recipe: Recipe, globs: Iterable[str], names: Sequence[str]) -> None:
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            components = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise RecipeError(
                f"`{glob}` in recipe `{recipe.name}` matches no weight that can be quantized",
                f"names here begin with: {components}; `mcpmq plan CHECKPOINT` lists them",
            )


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
    return next((glob for glob in reversed(list(globs)) if fnmatchcase(spec.name, glob)), None)


def _refuse_misfit(step: Step) -> None:
    if step.activation and step.scheme != BESIDE_INTEGER_INPUTS:
        raise RecipeError(
            f"`{step.name}` is to multiply inputs of `{step.activation}`, and its own numbers are"
            f" `{step.scheme or step.dtype}`",
            f"integers that meet integers have one scale a row: give it `{BESIDE_INTEGER_INPUTS}` under [weights],"
            " or leave it out of [activations]",
        )
    columns = step.matrix_shape[1]
    if not isinstance(step.scheme, GgmlScheme) or columns % step.scheme.block_columns == 0:
        return
    if step.spec.may_grow == "columns":
        return
    fits = "`q8_0` or `iq4_nl`" if columns % 32 == 0 else "`int8-row` or `keep`"
    raise RecipeError(
        f"`{step.name}` has {columns} columns, not a multiple of the {step.scheme.block_columns} of `{step.scheme}`",
        f'give it {fits} in the recipe: add `"{step.name}" = ...` after {step.reason}',
    )
