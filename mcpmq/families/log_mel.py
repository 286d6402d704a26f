"""Log-mel spectrograms of Whisper-like audio encoders, with the values of `WhisperFeatureExtractor` of transformers."""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.preprocessor import PREPROCESSOR_CONFIG, PROCESSOR_CONFIG
from mcpmq.system.audio_file import SAMPLING_RATE
from mcpmq.system.json_file import read_optional_json

N_FFT, HOP_LENGTH = 400, 160  # samples
MEL_FLOOR, DYNAMIC_RANGE = 1e-10, 8.0  # smallest power; powers of ten below the loudest value
NESTED_KEYS = ("feature_extractor", "audio_processor")  # of processor_config.json, as transformers 5 writes it
# The mel scale of Slaney's Auditory Toolbox: linear below 1 kHz, then logarithmic.
LINEAR_MELS, LINEAR_HZ, LOG_STEP = 15.0, 1000.0, math.log(6.4) / 27.0


class LogMel(ConfigSchema):
    """Settings of the feature extractor; defaults are those of transformers."""

    feature_extractor_type: str = Field(default="WhisperFeatureExtractor", pattern=r"^\w*FeatureExtractor$")
    feature_size: PositiveInt = Field(default=80, le=256)  # mel bins
    chunk_length: PositiveInt = Field(default=30, le=3600)  # seconds; longer audio is truncated by transformers
    sampling_rate: Literal[16000] = 16000
    hop_length: Literal[160] = 160
    n_fft: Literal[400] = 400
    dither: float = Field(default=0.0, ge=0, le=0)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the settings of a checkpoint or an artifact.

        Raises:
            CheckpointError: they are invalid or not supported.
        """
        return validate_config(cls, *_read(folder))

    @property
    def max_samples(self) -> int:
        """Return the length of the longest audio."""
        return self.chunk_length * SAMPLING_RATE

    def features(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-mel spectrogram [mel bins, frames] of mono samples at 16 kHz, one frame per 160 of them.

        The samples are padded with silence, as `WhisperFeatureExtractor` does; frames of padding only are left out.
        """
        num_frames = num_mel_frames(len(samples))
        half = N_FFT // 2
        padded = np.pad(np.pad(samples.astype(np.float64), (0, N_FFT)), (half, half), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH][:num_frames]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        log_mel = np.log10(np.maximum(power @ mel_filters(self.feature_size).T, MEL_FLOOR)).T
        normalized = (np.maximum(log_mel, log_mel.max() - DYNAMIC_RANGE) + 4.0) / 4.0
        return np.ascontiguousarray(normalized, np.float32)


def num_mel_frames(num_samples: int) -> int:
    """Return the number of frames of an audio; the last one may be partial."""
    return -(-num_samples // HOP_LENGTH)


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the settings that are not null and the name of their file; all are optional.

    Raises:
        CheckpointError: a file is invalid.
    """
    nested: object = None
    processor = read_optional_json(folder / PROCESSOR_CONFIG)
    for key in NESTED_KEYS:
        nested = nested if nested is not None else processor.get(key)
    file = PREPROCESSOR_CONFIG if nested is None else PROCESSOR_CONFIG
    settings = read_optional_json(folder / PREPROCESSOR_CONFIG) if nested is None else nested
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"the audio settings of `{file}` are not an object", "compare it with the published file")
    return {key: value for key, value in settings.items() if value is not None}, file


@cache
def mel_filters(num_bins: int) -> NDArray[np.float64]:
    """Return triangular filters of equal area between 0 Hz and 8 kHz: [mel bins, frequencies].

    Source: `librosa.filters.mel`, whose filters Whisper uses (arXiv 2212.04356).
    """
    nyquist = SAMPLING_RATE / 2
    corners = _to_hz(np.linspace(0.0, _to_mel(nyquist), num_bins + 2))
    frequencies = np.linspace(0.0, nyquist, N_FFT // 2 + 1)
    widths, slopes = np.diff(corners), corners[:, None] - frequencies
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    areas = 2.0 / (corners[2:] - corners[:-2])
    return np.maximum(0, np.minimum(rising, falling)) * areas[:, None]


def _to_mel(frequency: float) -> float:
    """Return the mel of a frequency above 1 kHz."""
    return LINEAR_MELS + math.log(frequency / LINEAR_HZ) / LOG_STEP


def _to_hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear, logarithmic = mels * LINEAR_HZ / LINEAR_MELS, LINEAR_HZ * np.exp(LOG_STEP * (mels - LINEAR_MELS))
    return np.where(mels < LINEAR_MELS, linear, logarithmic)
