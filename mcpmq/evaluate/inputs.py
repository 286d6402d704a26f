"""Encoding of an evaluation set, once for all engines, with the processor of the original checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.evaluate.schema import NONSQUARE
from mcpmq.evaluate.settings import Settings
from mcpmq.families.encoding import encode_sample
from mcpmq.families.images import open_image
from mcpmq.families.inputs import Inputs
from mcpmq.formats.kv_cache import cached_per_token
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.system.temporary_folder import temporary_folder

Layout: TypeAlias = tuple[tuple[int, ...], ...]  # numbers of image tokens, by image and slice


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """The encoded samples of an evaluation set."""

    store: InputsStore
    groups: tuple[str, ...]  # of each sample
    notes: tuple[str, ...] = ()  # modifications of the samples
    cached_per_token: tuple[int, int] = (0, 0)  # key values and values of all layers with a KV cache
    resources: ExitStack = field(default_factory=ExitStack)  # released with the inputs, e.g. a lock on a cache entry


@contextmanager
def encode_samples(checkpoint: Checkpoint, samples: SampleSet, settings: Settings) -> Iterator[EncodedInputs]:
    """Encode the samples into a temporary folder, which exists inside the `with` block.

    Raises:
        CheckpointError: the tokenizer or the preprocessor settings are damaged.
        DatasetError: an image cannot be read, or a sample is too long.
    """
    processor = checkpoint.family.open_processor(checkpoint.path)
    with temporary_folder() as folder:
        store, groups, layouts = InputsStore(folder), [], []
        for sample in settings.progress(samples.samples, "encoding samples"):
            inputs = encode_sample(processor, sample)
            store.append(_with_uncut_images(sample, inputs) if settings.engine_preprocessing else inputs)
            groups.append(_group(sample, inputs))
            layouts.append(_layout(inputs))
        notes = _shuffle_images(store, layouts) if settings.shuffle_images else ()
        cached = cached_per_token(checkpoint.architecture.language)
        with ExitStack() as resources:
            yield EncodedInputs(store, tuple(groups), notes, cached, resources)


def _with_uncut_images(sample: Sample, inputs: Inputs) -> Inputs:
    return replace(inputs, images=tuple(np.asarray(open_image(sample.id, image)) for image in sample.images))


def _group(sample: Sample, inputs: Inputs) -> str:
    return NONSQUARE if NONSQUARE in sample.tags and inputs.modality == "image" else inputs.modality


def _layout(inputs: Inputs) -> Layout:
    """Return the number of image tokens of every slice of every image."""
    counts = np.diff(inputs.image_bounds)[:, 0]
    images = np.split(counts, np.cumsum(inputs.slices_per_image)[:-1]) if len(counts) else []
    return tuple(tuple(image.tolist()) for image in images)


def _shuffle_images(store: InputsStore, layouts: Sequence[Layout]) -> tuple[str, ...]:
    store.permute_pixels(image_permutation(layouts))
    unchanged = sum(1 for layout in layouts if layout and layouts.count(layout) == 1)
    kept = f"; {unchanged} kept their own: no other image has as many slices" if unchanged else ""
    return (f"images shuffled among the questions{kept}",)


def image_permutation(layouts: Sequence[Layout]) -> list[int]:
    """Return, for each sample, the sample whose images it receives: those with equally many slices and image tokens are
    rotated by half of their number."""
    sources = list(range(len(layouts)))
    for layout in filter(None, dict.fromkeys(layouts)):
        group = [number for number, other in enumerate(layouts) if other == layout]
        half = (len(group) + 1) // 2
        for target, source in zip(group, group[half:] + group[:half], strict=True):
            sources[target] = source
    return sources
