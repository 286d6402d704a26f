"""The samples that calibrate a block: a part of them if an encoder has many more inputs than its matrices have columns.

An image of 12 megapixels has ten thousand patches: the statistics of a hundred would take hours, and those of some ten
thousand patches determine the products of a thousand columns. All samples pass through the quantized encoder.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mcpmq.calibrate.modalities import encoder_modality
from mcpmq.dataset import ENCODER_INPUTS_PER_COLUMN, MIN_ENCODER_INPUTS
from mcpmq.families.family import Architecture
from mcpmq.families.inputs import Inputs, Modality
from mcpmq.rounding.stats import AUDIO, VISION


@dataclass(frozen=True, slots=True)
class SampleSize:
    """The inputs of one sample: its modality, and its number of inputs of the vision and of the audio encoder."""

    modality: Modality
    inputs: Mapping[int, int]  # by the modality of the encoder

    @classmethod
    def of(cls, inputs: Inputs, architecture: Architecture) -> "SampleSize":
        """Return the size of an encoded sample."""
        side = architecture.vision.patch_size if architecture.vision else 0
        return cls(inputs.modality, {VISION: inputs.num_patches(side), AUDIO: inputs.num_audio_frames})


@dataclass(frozen=True, slots=True)
class ObservedSamples:
    """Chooses the samples of a block among those of all processes, by their sizes; `held_out` are indices."""

    sizes: Sequence[SampleSize]
    held_out: frozenset[int]

    def of_block(self, component: str, columns: int) -> frozenset[int]:
        """Return the indices of the samples that calibrate a block whose widest matrix has this number of columns."""
        counts = [size.inputs.get(encoder_modality(component), 0) for size in self.sizes]
        limit = max(MIN_ENCODER_INPUTS, ENCODER_INPUTS_PER_COLUMN * columns)
        if sum(counts) <= limit:
            return frozenset(range(len(counts)))
        groups = [index for index in range(len(counts)) if index not in self.held_out], sorted(self.held_out)
        return frozenset(index for group in groups for index in spread(group, counts, limit / sum(counts)))


def spread(indices: Iterable[int], counts: Sequence[int], share: float) -> list[int]:
    """Return indices whose counts add up to about this share of the sum, evenly spread over those with a count.

    It is at least one index if there is any.
    """
    chosen, taken, expected = list[int](), 0, 0.0
    for index in indices:
        expected += share * counts[index]
        if counts[index] and (not chosen or taken + counts[index] / 2 <= expected):
            chosen.append(index)
            taken += counts[index]
    return chosen
