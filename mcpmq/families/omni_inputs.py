"""Model inputs of families with an image and an audio encoder, beside those of their images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mcpmq.families import family_of
from mcpmq.families.audio_inputs import AudioEncoding
from mcpmq.families.inputs import Inputs
from mcpmq.families.qwenvl_resizing import Resizing
from mcpmq.families.slicing import Slicing
from mcpmq.system.json_file import read_json


def open_audio(folder: Path) -> AudioEncoding:
    """Open the settings of the audio encoder of a checkpoint or an artifact.

    Raises:
        CheckpointError: a file is missing or invalid, or two files contradict each other.
    """
    config = read_json(folder / "config.json")
    return AudioEncoding.open(folder, family_of(config).parse_architecture(config).required_audio)


def padded_features(encoding: AudioEncoding, inputs: Inputs) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the log-mel spectrograms of all segments of a sample, and the number of their frames.

    Float32 [segments, mel bins, frames], zero after the end of a segment, and int64 [segments].
    """
    features = encoding.features(inputs.audio)
    frames = np.array([one.shape[1] for one in features], np.int64)
    padded = [np.pad(one, ((0, 0), (0, int(frames.max()) - one.shape[1]))) for one in features]
    return np.stack(padded), frames


@dataclass(frozen=True, slots=True)
class OmniInputs:
    """Graph inputs of images and audio, and position ids of encoded samples."""

    images: Resizing | Slicing
    audio: AudioEncoding

    @classmethod
    def open(cls, folder: Path, images: Resizing | Slicing) -> Self:
        """Open the settings of the audio encoder, beside those of images."""
        return cls(images, open_audio(folder))

    def image_tokens(self, width: int, height: int, num_queries: int) -> int:
        """Return the number of tokens of an image of this size."""
        return self.images.image_tokens(width, height, num_queries)

    def graph_inputs(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the inputs of the vision graph for one image or slice."""
        return self.images.graph_inputs(pixels)

    def audio_graph_inputs(self, waveform: NDArray[np.float32]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the inputs of the audio graph; see `AudioEncoding.graph_inputs`."""
        return self.audio.graph_inputs(waveform)

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Compute the positions of tokens: int64 [length] or [3, length]; audio tokens count as text."""
        return self.images.position_ids(inputs)
