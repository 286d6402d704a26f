"""Encoding of an evaluation set, once for all engines, with the processor of the original checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.dataset import Sample, SampleSet
from mcpmq.errors import DatasetError
from mcpmq.evaluate.schema import NONSQUARE
from mcpmq.evaluate.settings import Settings
from mcpmq.families.encoding import encode_sample
from mcpmq.families.images import open_image
from mcpmq.families.inputs import Inputs
from mcpmq.formats.kv_cache import cached_per_token
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.runners.token_metrics import ReferenceVocabulary
from mcpmq.system.temporary_folder import temporary_folder
from mcpmq.vocabulary import trimmed_view

Layout: TypeAlias = tuple[tuple[int, ...], ...]  # dimensions and numbers of image tokens, by image and slice


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """The encoded samples of an evaluation set."""

    checkpoint: Checkpoint  # whose processor encoded the samples
    samples: SampleSet
    store: InputsStore
    groups: tuple[str, ...]  # of each sample
    notes: tuple[str, ...] = ()  # modifications of the samples
    cached_per_token: tuple[int, int] = (0, 0)  # key values and values of all layers with a KV cache
    resources: ExitStack = field(default_factory=ExitStack)  # released with the inputs, e.g. a lock on a cache entry
    vocabulary: ReferenceVocabulary | None = None  # of the checkpoint, if the tokens are those of a trimmed vocabulary


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
            yield EncodedInputs(checkpoint, samples, store, tuple(groups), notes, cached, resources)


@contextmanager
def with_vocabulary(inputs: EncodedInputs, kept: KeptVocabulary | None) -> Iterator[EncodedInputs]:
    """Yield the samples in the tokens of a trimmed vocabulary; the samples themselves if it is None.

    Samples of kept tokens have these tokens. Others are encoded again, in more tokens, with the same pixels.

    Raises:
        CheckpointError: the vocabulary is not a part of that of the checkpoint.
        DatasetError: a sample is too long in the tokens of the trimmed vocabulary.
    """
    if kept is None:
        yield inputs
        return
    with trimmed_view(inputs.checkpoint, kept) as view, temporary_folder(inputs.store.folder) as folder:
        store, rows = InputsStore(folder), _same_token_rows(inputs.store, kept.new_ids)
        processor = view.family.open_processor(view.path)
        for number, (sample, row) in enumerate(zip(inputs.samples, rows, strict=True)):
            encoded = encode_sample(processor, sample) if row < 0 else inputs.store[number]
            tokens = encoded.tokens if row < 0 else kept.new_ids[encoded.tokens]
            store.append_with_pixels(replace(encoded, tokens=tokens), inputs.store.pixel_file(number))
        num_rows = sum(len(one.measured) for one in inputs.store)
        vocabulary = ReferenceVocabulary(kept.original_size, kept.ids, np.array(rows, np.int64), num_rows)
        yield replace(inputs, store=store, vocabulary=vocabulary)


def _same_token_rows(store: InputsStore, new_ids: NDArray[np.int64]) -> list[int]:
    """Return the first row of each sample among all answer tokens; -1 for a sample with a removed token."""
    lengths = [len(sample.measured) for sample in store]
    starts = np.cumsum([0, *lengths])[:-1]
    kept = [bool((new_ids[sample.tokens] >= 0).all()) for sample in store]
    return [start if is_kept else -1 for start, is_kept in zip(starts.tolist(), kept, strict=True)]


def _with_uncut_images(sample: Sample, inputs: Inputs) -> Inputs:
    if sample.videos:
        raise DatasetError(
            f"sample `{sample.id}` has a video, and the preprocessing of llama.cpp is compared on images only",
            "evaluate without `--engine-preprocessing`, or on a set without videos",
        )
    return replace(inputs, images=tuple(np.asarray(open_image(sample.id, image)) for image in sample.images))


def _group(sample: Sample, inputs: Inputs) -> str:
    return NONSQUARE if NONSQUARE in sample.tags and inputs.modality == "image" else inputs.modality


def _layout(inputs: Inputs) -> Layout:
    """Return the dimensions of a slice and the number of tokens of every slice, for every image and video."""
    if not inputs.slices:
        return ()
    images = np.split(np.diff(inputs.image_bounds)[:, 0], np.cumsum(inputs.slices_per_image)[:-1])
    return tuple((pixels.ndim, *image.tolist()) for image, pixels in zip(images, _first_slices(inputs), strict=True))


def _first_slices(inputs: Inputs) -> list[NDArray[np.uint8]]:
    """Return the first slice of every image or video."""
    return [inputs.slices[index] for index in np.cumsum([0, *inputs.slices_per_image[:-1]])]


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
