"""Encoding of an evaluation set, once for all engines, with the processor of the original checkpoint."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Sample, SampleSet
from mcpmq.evaluate.schema import NONSQUARE
from mcpmq.evaluate.settings import Settings
from mcpmq.families.encoding import encode_sample
from mcpmq.families.family import Inputs
from mcpmq.families.images import open_image
from mcpmq.runners.inputs_store import InputsStore
from mcpmq.system.temporary_folder import temporary_folder


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """The encoded samples of an evaluation set."""

    store: InputsStore
    groups: tuple[str, ...]  # of each sample
    notes: tuple[str, ...] = ()  # modifications of the samples
    kv_values_per_token: int = 0  # keys and values of all layers
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
        store, groups, num_slices = InputsStore(folder), [], []
        for sample in settings.progress(samples.samples, "encoding samples"):
            inputs = encode_sample(processor, sample)
            store.append(_with_uncut_image(sample, inputs) if settings.engine_preprocessing else inputs)
            groups.append(_group(sample, inputs))
            num_slices.append(len(inputs.slices))
        notes = _shuffle_images(store, num_slices) if settings.shuffle_images else ()
        language = checkpoint.architecture.language
        kv_values = 2 * language.num_layers * language.num_kv_heads * language.head_dim
        with ExitStack() as resources:
            yield EncodedInputs(store, tuple(groups), notes, kv_values, resources)


def _with_uncut_image(sample: Sample, inputs: Inputs) -> Inputs:
    if sample.image is None:
        return inputs
    return replace(inputs, image=np.asarray(open_image(sample.id, sample.image)))


def _group(sample: Sample, inputs: Inputs) -> str:
    return NONSQUARE if NONSQUARE in sample.tags and inputs.slices else inputs.modality


def _shuffle_images(store: InputsStore, num_slices: Sequence[int]) -> tuple[str, ...]:
    store.permute_pixels(image_permutation(num_slices))
    unchanged = sum(1 for count in num_slices if count and num_slices.count(count) == 1)
    kept = f"; {unchanged} kept their own: no other image has as many slices" if unchanged else ""
    return (f"images shuffled among the questions{kept}",)


def image_permutation(num_slices: Sequence[int]) -> list[int]:
    """Return, for each sample, the sample whose image it receives: images with equally many slices are rotated by half
    of their number."""
    sources = list(range(len(num_slices)))
    for count in set(num_slices) - {0}:
        group = [number for number, value in enumerate(num_slices) if value == count]
        half = (len(group) + 1) // 2
        for target, source in zip(group, group[half:] + group[:half], strict=True):
            sources[target] = source
    return sources
