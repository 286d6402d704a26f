"""Structured compression that a search may choose: layers, limits of images, and vocabularies, with their views."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mcpmq.checkpoint import Checkpoint
from mcpmq.compression import limit_images
from mcpmq.compression.layers import without_layers
from mcpmq.compression_tables import ImagesTable, VocabularyTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import RecipeError
from mcpmq.mixed_precision.budget import Budget
from mcpmq.mixed_precision.choices import Solution
from mcpmq.recipe import Recipe
from mcpmq.system.progress import Progress
from mcpmq.vocabulary import trim_vocabulary

ALL_IMAGES, ALL_TOKENS = "images of the original", "vocabulary of the original"  # settings that change nothing
MAX_CANDIDATES = 16  # of images and of vocabularies


@dataclass(frozen=True, slots=True)
class Structure:
    """Structured compression that a search may choose; by default nothing.

    max_removed: the largest number of removed layers.
    images: limits of images, of which one may be chosen under a memory limit.
    image_sizes: width and height in pixels of the images in the context of the device.
    vocabularies: kept tokens, of which one set may be chosen.
    """

    max_removed: int = 0
    images: tuple[ImagesTable, ...] = ()
    image_sizes: tuple[tuple[int, int], ...] = ()
    vocabularies: tuple[VocabularyTable, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.max_removed or self.images or self.image_sizes or self.vocabularies)

    def check(self, base: Recipe, budget: Budget) -> None:
        """Check that the choices are complete and that the recipe has not made them already.

        Raises:
            RecipeError: they are not, or the recipe has.
        """
        given = {"layers": self.max_removed, "images": self.images, "vocabulary": self.vocabularies}
        if decided := [name for name, choices in given.items() if choices and getattr(base, name)]:
            table = decided[0]
            raise RecipeError(
                f"recipe `{base.name}` has [{table}], and the search is to choose it", f"give one without [{table}]"
            )
        if self.images and budget.memory_nbytes is None:
            raise RecipeError(
                f"limits of images ({'; '.join(map(str, self.images))}) change no file, and no memory limit is given",
                "give `--max-memory`",
            )
        if bool(self.images) != bool(self.image_sizes):
            has, lacks = ("limits", "sizes") if self.images else ("sizes", "limits")
            raise RecipeError(
                f"{has} of images are given without their {lacks}", "give `--image-limits` and `--image-size`"
            )
        for several in (self.images, self.vocabularies):
            if len(several) > MAX_CANDIDATES:
                raise RecipeError(f"{len(several)} candidates are given", f"give at most {MAX_CANDIDATES}")


NO_STRUCTURE = Structure()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A table of a recipe that a search may choose, and the checkpoint with it."""

    table: ImagesTable | VocabularyTable
    view: Checkpoint
    saved_tokens: int = 0  # of the images in the context

    @property
    def part(self) -> str:
        """The name of the table."""
        return "images" if isinstance(self.table, ImagesTable) else "vocabulary"

    @property
    def name(self) -> str:
        """The name of the setting."""
        if isinstance(self.table, ImagesTable):
            return f"images: {self.table}"
        given = self.table.model_dump(exclude_defaults=True).items()
        keys = (f"{key} {', '.join(value) if isinstance(value, list) else f'{value:,}'}" for key, value in given)
        return f"vocabulary: {'; '.join(keys)}: {self.view.vocabulary}"


Candidates = Mapping[str, Candidate]  # by the name of their setting


@contextmanager
def open_candidates(
    checkpoint: Checkpoint, structure: Structure, budget: Budget, calibration: SampleSet, progress: Progress
) -> Iterator[Candidates]:
    """Yield the candidates of images and vocabularies, whose views are valid inside of the `with` block.

    Raises:
        RecipeError: a table is not valid for the checkpoint, or limits of images save no token.
        CheckpointError: the tokenizer cannot be trimmed.
    """
    found: list[Candidate] = []
    with ExitStack() as stack:
        for limits in structure.images:
            view = stack.enter_context(limit_images(checkpoint, limits))
            found.append(Candidate(limits, view, _saved_tokens(checkpoint, view, limits, structure, budget)))
        for table in structure.vocabularies:
            view = stack.enter_context(trim_vocabulary(checkpoint, table, calibration, progress))
            found.append(Candidate(table, view))
        yield {one.name: one for one in found}


def _saved_tokens(
    checkpoint: Checkpoint, view: Checkpoint, limits: ImagesTable, structure: Structure, budget: Budget
) -> int:
    before, after = (image_tokens(one, structure.image_sizes) for one in (checkpoint, view))
    sizes = ", ".join(f"{width} x {height}" for width, height in structure.image_sizes)
    if before > budget.context:
        raise RecipeError(
            f"images of {sizes} pixels have {before:,} tokens, more than the context of {budget.context:,}",
            f"give a context of more than {before:,} tokens, or fewer or smaller images",
        )
    if after >= before:
        raise RecipeError(
            f"{limits} saves no token: images of {sizes} pixels have {before:,} tokens, and {after:,} with the limit",
            "give a smaller limit, or larger images with `--image-size`",
        )
    return before - after


def image_tokens(checkpoint: Checkpoint, sizes: Sequence[tuple[int, int]]) -> int:
    """Return the tokens of images of these sizes, without their tags."""
    settings = checkpoint.family.open_vision_inputs(checkpoint.path)
    queries = checkpoint.architecture.required_vision.num_queries
    return sum(settings.image_tokens(*size, queries) for size in sizes)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The structured compression of a solution."""

    removed: tuple[str, ...] = ()  # layers of the original
    candidates: tuple[Candidate, ...] = ()
    loss: float = 0.0

    @classmethod
    def of(cls, solution: Solution, candidates: Candidates) -> "Chosen":
        """Return the compression of a solution."""
        chosen = tuple(candidates[one.name] for one in solution.settings if one.name in candidates)
        return cls(tuple(one.layer for one in solution.removed), chosen, solution.structure_loss)

    def __bool__(self) -> bool:
        return bool(self.removed or self.candidates)

    def __str__(self) -> str:
        layers = [f"without {', '.join(self.removed)}"] if self.removed else []
        return "; ".join([*layers, *(one.name for one in self.candidates)])

    @property
    def tables(self) -> dict[str, ImagesTable | VocabularyTable]:
        """The tables of a recipe, by name, without that of the layers."""
        return {one.part: one.table for one in self.candidates}

    @property
    def saved_tokens(self) -> int:
        return sum(one.saved_tokens for one in self.candidates)

    @contextmanager
    def view(self, checkpoint: Checkpoint) -> Iterator[Checkpoint]:
        """Yield the compressed checkpoint, valid inside of the `with` block."""
        trimmed = next((one.view for one in self.candidates if one.part == "vocabulary"), checkpoint)
        limits = next((one.table for one in self.candidates if isinstance(one.table, ImagesTable)), None)
        with without_layers(trimmed, self.removed) as shorter, limit_images(shorter, limits) as view:
            yield view


NOTHING = Chosen()
