"""Model inputs of one sample: tokens, pixels, audio, and the places of images, audio and answers."""

from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mcpmq.families.audio_shape import SAMPLES_PER_MEL_FRAME

Modality = Literal["image", "images", "video", "text", "audio", "audio-image"]


def slice_size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Return height and width of a slice, also of one with several frames."""
    return pixels.shape[-3], pixels.shape[-2]


def _no_spans() -> NDArray[np.int64]:
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Model inputs of one sample: the same tokens, pixels and audio for all engines.

    Attributes:
        tokens: int64 [length], all turns; the last answer ends with the end-of-turn token.
        answer_start: index of the first token of the last answer.
        slices: uint8 RGB [height, width, 3] each, with sides that are multiples of the patch size; one per image for a
            family without slicing. A slice of several frames of a video, which become the same tokens, is uint8 RGB
            [frames, height, width, 3].
        image_bounds: int64 [slices, 2], first and past-the-last token of each slice's image tokens.
        images: uint8 RGB [height, width, 3] each, the images before slicing; only for engines with their own
            preprocessing.
        earlier_answers: int64 [answers, 2], first and past-the-last token of the answers of earlier turns.
        slices_per_image: number of slices of each image, video or frame of a video; empty if all slices are those of
            one image.
        audio: float32 [samples] each, mono at 16 kHz, in their order.
        audio_bounds: int64 [spans, 2], first and past-the-last token of each span of audio tokens.
        spans_per_audio: number of spans of each audio, which its embeddings fill in their order.
        frame_intervals: seconds from one slice or frame of a video to the next, 0 for an image, for every entry of
            `slices_per_image`; empty without a video.
        slice_times: time position of each slice relative to the first one of its video (M-RoPE); empty if all are 0.
    """

    id: str
    tokens: NDArray[np.int64]
    answer_start: int
    slices: tuple[NDArray[np.uint8], ...]
    image_bounds: NDArray[np.int64]
    images: tuple[NDArray[np.uint8], ...] = ()
    earlier_answers: NDArray[np.int64] = field(default_factory=_no_spans)
    slices_per_image: tuple[int, ...] = ()
    audio: tuple[NDArray[np.float32], ...] = ()
    audio_bounds: NDArray[np.int64] = field(default_factory=_no_spans)
    spans_per_audio: tuple[int, ...] = ()
    frame_intervals: tuple[float, ...] = ()
    slice_times: tuple[int, ...] = ()

    def num_patches(self, patch_size: int) -> int:
        """Return the number of patches of all slices; `patch_size` is in pixels, 0 without a vision encoder."""
        return sum(prod(slice_size(part)) // patch_size**2 for part in self.slices if patch_size)

    @property
    def num_audio_frames(self) -> int:
        """The inputs of the layers of an audio encoder: its second convolution halves the mel frames."""
        return sum(map(len, self.audio)) // SAMPLES_PER_MEL_FRAME // 2

    @property
    def modality(self) -> Modality:
        """`audio` or `audio-image` if the sample has audio; else `video`, `image`, or `images` for several images."""
        if self.audio:
            return "audio-image" if self.slices else "audio"
        if self.frame_intervals:
            return "video"
        return "images" if len(self.slices_per_image) > 1 else "image" if self.slices else "text"

    @property
    def image_flags(self) -> NDArray[np.int64]:
        """Return 1 for image tokens and 0 for others: int64 [length]."""
        flags = np.zeros_like(self.tokens)
        for start, end in self.image_bounds.tolist():
            flags[start:end] = 1
        return flags

    @property
    def audio_tokens(self) -> NDArray[np.int64]:
        """Indices of the audio tokens: int64 [audio tokens]."""
        return np.concatenate([np.arange(0), *(np.arange(start, end) for start, end in self.audio_bounds.tolist())])

    @property
    def spans_by_audio(self) -> list[list[tuple[int, int]]]:
        """First and past-the-last token of the spans of each audio."""
        spans = iter([(start, end) for start, end in self.audio_bounds.tolist()])
        return [list(islice(spans, count)) for count in self.spans_per_audio]

    @property
    def answer_spans(self) -> list[tuple[int, int]]:
        """First and past-the-last token of every answer, in their order."""
        earlier = [(start, end) for start, end in self.earlier_answers.tolist()]
        return [*earlier, (self.answer_start, len(self.tokens))]

    @property
    def measured(self) -> NDArray[np.int64]:
        """Indices of the tokens of all answers: int64 [measured]."""
        return np.concatenate([np.arange(start, end) for start, end in self.answer_spans])

    @property
    def answer_tokens(self) -> NDArray[np.int64]:
        """The tokens of all answers: int64 [measured]."""
        return self.tokens[self.measured]
