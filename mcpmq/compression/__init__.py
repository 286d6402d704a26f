"""Structured compression: the checkpoint of a recipe without some tokens, layers or image tokens, as a view."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.image_limits import ImageLimits
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.compression.images import limit_images
from mcpmq.compression.layers import remove_layers
from mcpmq.compression_tables import LayersTable
from mcpmq.dataset import SampleSet
from mcpmq.recipe import Recipe
from mcpmq.system.progress import Progress, silent
from mcpmq.vocabulary import trim_vocabulary, trimmed_view

__all__ = ["compress", "compressed_view", "limit_images", "remove_layers"]


class CompressionRecord(Protocol):
    """The part of a manifest that records structured compression."""

    @property
    def vocabulary(self) -> KeptVocabulary | None: ...
    @property
    def layers(self) -> LayersTable | None: ...
    @property
    def images(self) -> ImageLimits | None: ...


@contextmanager
def compress(
    checkpoint: Checkpoint, recipe: Recipe, calibration: SampleSet | None = None, progress: Progress = silent
) -> Iterator[Checkpoint]:
    """Yield the checkpoint with the tokens, layers and image limits of a recipe, valid inside of the `with` block.

    No weight is read. A checkpoint that the recipe does not change is yielded itself.

    Raises:
        CheckpointError: the tokenizer cannot be trimmed, or files contradict each other.
        RecipeError: a table is not valid for the checkpoint.
        DatasetError: a table needs the calibration set, and it is not given.
    """
    with ExitStack() as stack:
        view = stack.enter_context(trim_vocabulary(checkpoint, recipe.vocabulary, calibration, progress))
        view = stack.enter_context(remove_layers(view, recipe.layers))
        yield stack.enter_context(limit_images(view, recipe.images))


@contextmanager
def compressed_view(checkpoint: Checkpoint, record: CompressionRecord) -> Iterator[Checkpoint]:
    """Yield the original of an artifact with the tokens, layers and image limits of its manifest.

    Raises:
        CheckpointError: the vocabulary is not a part of that of the checkpoint.
    """
    with ExitStack() as stack:
        if record.vocabulary:
            checkpoint = stack.enter_context(trimmed_view(checkpoint, record.vocabulary))
        checkpoint = stack.enter_context(remove_layers(checkpoint, record.layers))
        yield stack.enter_context(limit_images(checkpoint, record.images.limits if record.images else None))
