"""What will be done to every weight, decided from headers alone, before any weight is read."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import RecipeError
from mcpmq.families.family import TensorSpec
from mcpmq.recipe import GgmlScheme, Recipe, Scheme
from mcpmq.safetensors_file import DTYPES

COMPONENTS = {"vision", "projector", "embedding", "language", "head"}


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor and its fate; `scheme` is None where it keeps its dtype, and `reason` says why."""

    spec: TensorSpec
    dtype: str  # of the source, as torch calls it
    scheme: Scheme | None
    reason: str  # the glob that decided, or why none applies

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
        RecipeError: a line matches no weight, or a scheme does not fit a weight.
    """
    steps = tuple(_step(checkpoint, recipe, spec) for spec in checkpoint.specs)
    quantizable = [name for spec in checkpoint.specs if spec.role != "other" for name in _names(spec)]
    absent = COMPONENTS - {name.partition(".")[0] for name in quantizable}
    for glob in recipe.weights:
        if glob.partition(".")[0] not in absent and not any(fnmatchcase(name, glob) for name in quantizable):
            components = ", ".join(dict.fromkeys(name.partition(".")[0] for name in quantizable))
            raise RecipeError(
                f"`{glob}` in recipe `{recipe.name}` matches no weight that can be quantized",
                f"names here begin with: {components}; `mcpmq plan CHECKPOINT` lists them",
            )
    return Plan(checkpoint, recipe, steps)


def _names(spec: TensorSpec) -> list[str]:
    return [name for name in (spec.name, spec.also) if name]


def _step(checkpoint: Checkpoint, recipe: Recipe, spec: TensorSpec) -> Step:
    dtype = checkpoint.entries[spec.name].torch_dtype
    if spec.role == "other":
        return Step(spec, dtype, None, "no matrix or table")
    matching = [glob for glob in recipe.weights if any(fnmatchcase(name, glob) for name in _names(spec))]
    if not matching:
        return Step(spec, dtype, None, "nothing in the recipe matches")
    step = Step(spec, dtype, recipe.weights[matching[-1]], f'"{matching[-1]}"')
    _refuse_misfit(step)
    return step


def _refuse_misfit(step: Step) -> None:
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
