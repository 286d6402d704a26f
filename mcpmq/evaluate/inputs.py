"""Samples as every engine gets them: encoded once, by the original's own processor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import CalibrationSet, Sample
from mcpmq.evaluate.metrics import NONSQUARE
from mcpmq.evaluate.settings import Settings
from mcpmq.families.family import Inputs
from mcpmq.runners.inputs_store import SampleFiles


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """Samples as every engine gets them; `notes` says what was done to them."""

    files: SampleFiles
    kinds: tuple[str, ...]
    notes: tuple[str, ...] = ()
    cached_values_per_token: int = 0  # keys and values of all layers


@contextmanager
def encoded(checkpoint: Checkpoint, samples: CalibrationSet, settings: Settings) -> Iterator[EncodedSet]:
    """The samples encoded once, by the original's own processor, in a temporary folder.

    Raises:
        CheckpointError: the tokenizer or the processor's settings are broken.
        CalibrationError: an image cannot be read, or a sample is too long.
    """
    processor = checkpoint.family.processor(checkpoint.path)
    with TemporaryDirectory(prefix="mcpmq-") as folder:
        files, kinds, slices = SampleFiles(Path(folder)), [], []
        for sample in settings.progress(samples.samples, "preparing images and questions"):
            inputs = processor.encode(sample.id, sample.image, sample.prompt, sample.answer)
            files.append(_whole(sample, inputs) if settings.engine_cuts else inputs)
            kinds.append(_kind(sample, inputs))
            slices.append(len(inputs.slices))
        notes = _shuffle(files, slices) if settings.shuffle_images else ()
        language = checkpoint.architecture.language
        cached = 2 * language.layers * language.kv_heads * language.head_width
        yield EncodedSet(files, tuple(kinds), notes, cached)


def _whole(sample: Sample, inputs: Inputs) -> Inputs:
    """With the image as it was before it was cut."""
    if sample.image is None:
        return inputs
    with Image.open(sample.image) as image:
        return replace(inputs, image=np.asarray(image.convert("RGB")))


def _kind(sample: Sample, inputs: Inputs) -> str:
    return NONSQUARE if NONSQUARE in sample.tags and inputs.slices else inputs.kind


def _shuffle(files: SampleFiles, slices: Sequence[int]) -> tuple[str, ...]:
    files.move_pixels(shuffled(slices))
    alone = sum(1 for count in slices if count and slices.count(count) == 1)
    kept = f"; {alone} kept their own: no other image has as many slices" if alone else ""
    return (f"images shuffled among the questions{kept}",)


def shuffled(slices: Sequence[int]) -> list[int]:
    """For every sample the one whose image it gets: half a turn among the images with as many slices."""
    givers = list(range(len(slices)))
    for count in set(slices) - {0}:
        group = [number for number, value in enumerate(slices) if value == count]
        half = (len(group) + 1) // 2
        for taker, giver in zip(group, group[half:] + group[:half], strict=True):
            givers[taker] = giver
    return givers
