"""Audio of a prompt: placeholders for its tokens, the spans of these, and the inputs of the audio encoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.audio_shape import AudioShape
from mcpmq.families.log_mel import LogMel
from mcpmq.families.preprocessor import check_consistent
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.system.audio_file import SAMPLING_RATE, Waveform

Samples = NDArray[np.float32]  # [samples], mono at 16 kHz
SHORT_HINT = "leave it out, or append silence"


@dataclass(frozen=True, slots=True)
class AudioEncoding:
    """Conversion of audio to tokens and to inputs of the audio encoder."""

    shape: AudioShape
    log_mel: LogMel

    @classmethod
    def open(cls, folder: Path, shape: AudioShape) -> Self:
        """Read the settings of the feature extractor.

        Raises:
            CheckpointError: they are invalid, or are those of another audio encoder.
        """
        log_mel = LogMel.open(folder)
        if "feature_size" in log_mel.model_fields_set:
            check_consistent("num_mel_bins", shape.num_mel_bins, log_mel.feature_size)
        return cls(shape, log_mel.model_copy(update={"feature_size": shape.num_mel_bins}))

    def num_tokens(self, label: str, samples: Samples) -> int:
        """Return the number of audio tokens.

        Raises:
            DatasetError: the audio is too short or too long; the error has `label`.
        """
        seconds, count = len(samples) / SAMPLING_RATE, self.shape.num_tokens(len(samples))
        if not count:
            raise DatasetError(f"{label}: audio of {seconds:g} seconds has no token", SHORT_HINT)
        if not self.shape.max_segment_seconds and len(samples) > self.log_mel.max_samples:
            message = f"{label}: audio of {seconds:g} seconds, more than {self.log_mel.chunk_length} of the model"
            raise DatasetError(message, "cut it into parts")
        return count

    def segments(self, samples: Samples) -> list[Samples]:
        """Return the parts of an audio that are encoded separately, without a part that is too short for a token."""
        length = self.shape.max_segment_seconds * SAMPLING_RATE or len(samples)
        parts = [samples[start : start + length] for start in range(0, len(samples), length)]
        return [part for part in parts if self.shape.num_tokens(len(part))]

    def features(self, waveforms: Sequence[Samples]) -> list[NDArray[np.float32]]:
        """Return the log-mel spectrograms [mel bins, frames] of all segments of several audios, in their order."""
        return [self.log_mel.features(part) for one in waveforms for part in self.segments(one)]

    def graph_inputs(self, samples: Samples) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the inputs of the audio graph for each segment: `input_features` float32 [1, mel bins, frames]."""
        for features in self.features([samples]):
            yield {"input_features": features[None]}


@dataclass(frozen=True, slots=True)
class PromptAudio:
    """The audios of one prompt, in their order."""

    encoding: AudioEncoding
    prompt_format: PromptFormat
    special_tokens: Mapping[str, int]
    label: str
    waveforms: list[Samples] = field(default_factory=list)

    def text(self, audio: Waveform) -> str:
        """Add an audio, and return the tags with its tokens.

        Raises:
            DatasetError: the audio is too short or too long.
        """
        count = self.encoding.num_tokens(self.label, audio.samples)
        self.waveforms.append(audio.samples)
        (begin, end), token = self.prompt_format.audio_tags, self.prompt_format.audio_token
        return "".join(f"{begin}{token * part}{end}" for part in self._span_lengths(count))

    def inputs(self, tokens: NDArray[np.int64]) -> dict[str, Any]:
        """Return the fields of `Inputs` of the audios in these tokens; see `bounds`."""
        return {
            "audio": tuple(self.waveforms),
            "audio_bounds": self.bounds(tokens),
            "spans_per_audio": self.spans_per_audio,
        }

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of every span of audio tokens: int64 [spans, 2].

        Raises:
            CheckpointError: the prompt has other spans.
        """
        begin, end = (np.flatnonzero(tokens == self.special_tokens[tag]) for tag in self.prompt_format.audio_tags)
        counts = (self.encoding.num_tokens(self.label, one) for one in self.waveforms)
        expected = [part for count in counts for part in self._span_lengths(count)]
        if len(begin) != len(end) or (end - begin - 1).tolist() != expected:
            raise CheckpointError(
                f"the rendered prompt has {len(begin)} of {len(expected)} spans with {expected} audio tokens",
                "compare `chat_template` with the published template",
            )
        return np.stack([begin + 1, end], axis=1)

    @property
    def spans_per_audio(self) -> tuple[int, ...]:
        """Return the number of spans of each audio."""
        counts = (self.encoding.num_tokens(self.label, one) for one in self.waveforms)
        return tuple(len(self._span_lengths(count)) for count in counts)

    def _span_lengths(self, count: int) -> list[int]:
        longest = self.prompt_format.audio_span_tokens or count
        return [min(longest, count - start) for start in range(0, count, longest)]
