"""Encoding of an evaluation set, once for all engines, with the processor of the original checkpoint."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcpmq.artifact import Manifest
from mcpmq.checkpoint import Checkpoint
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.compression import compressed_view
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
            store.append(_prepared(sample, inputs, settings))
            groups.append(_group(sample, inputs))
            layouts.append(_layout(inputs))
        notes = _shuffle_images(store, layouts) if settings.shuffle_images else ()
        cached = cached_per_token(checkpoint.architecture.language)
        with ExitStack() as resources:
            yield EncodedInputs(checkpoint, samples, store, tuple(groups), notes, cached, resources)


@contextmanager
def inputs_of(
    manifest: Manifest, inputs: EncodedInputs, settings: Settings, ids: Collection[str] | None = None
) -> Iterator[EncodedInputs]:
    """Yield the samples as an artifact encodes them: in the tokens and with the image limits of its manifest.

    Samples of kept tokens have these tokens, others are encoded again, in more tokens; so are images with other limits.
    The numbers of cached values are those of its layers.

    With `ids`, the store has these samples only, and nothing else is encoded.

    Raises:
        CheckpointError: the vocabulary is not a part of that of the checkpoint.
        DatasetError: a sample is too long, or the images are shuffled and the artifact has image limits.
    """
    kept, limits = manifest.vocabulary, manifest.images
    if not (kept or limits or manifest.layers):
        yield inputs
        return
    _check_shuffled(manifest, settings)
    with compressed_view(inputs.checkpoint, manifest) as view, temporary_folder(inputs.store.folder) as folder:
        inputs = replace(inputs, cached_per_token=cached_per_token(view.architecture.language))
        if not (kept or limits):
            yield inputs
            return
        store, rows = InputsStore(folder), _first_rows(inputs.store, kept)
        processor = view.family.open_processor(view.path)
        for number, (sample, row) in enumerate(zip(inputs.samples, rows, strict=True)):
            if ids is not None and sample.id not in ids:
                continue
            if limits and sample.has_vision:
                store.append(_prepared(sample, encode_sample(processor, sample), settings))
                continue
            encoded = encode_sample(processor, sample) if row < 0 else inputs.store[number]
            tokens = encoded.tokens if row < 0 or kept is None else kept.new_ids[encoded.tokens]
            store.append_with_pixels(replace(encoded, tokens=tokens), inputs.store.pixel_file(number))
        yield replace(inputs, store=store, vocabulary=_reference_vocabulary(kept, inputs.store, rows))


def _check_shuffled(manifest: Manifest, settings: Settings) -> None:
    if manifest.images and settings.shuffle_images:
        raise DatasetError(
            f"images are shuffled among those of equal size, which image limits change: {manifest.images}",
            "evaluate an artifact with the image limits of the original",
        )


def _reference_vocabulary(
    kept: KeptVocabulary | None, store: InputsStore, rows: Sequence[int]
) -> ReferenceVocabulary | None:
    if kept is None:
        return None
    num_rows = sum(len(one.measured) for one in store)
    return ReferenceVocabulary(kept.original_size, kept.ids, np.array(rows, np.int64), num_rows)


def _first_rows(store: InputsStore, kept: KeptVocabulary | None) -> list[int]:
    """Return the first row of each sample among all answer tokens; -1 for a sample with a removed token."""
    lengths = [len(sample.measured) for sample in store]
    starts: list[int] = np.cumsum([0, *lengths])[:-1].tolist()
    if kept is None:
        return starts
    new_ids = kept.new_ids
    is_kept = [bool((new_ids[sample.tokens] >= 0).all()) for sample in store]
    return [start if found else -1 for start, found in zip(starts, is_kept, strict=True)]


def _prepared(sample: Sample, inputs: Inputs, settings: Settings) -> Inputs:
    return _with_uncut_images(sample, inputs) if settings.engine_preprocessing else inputs


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
