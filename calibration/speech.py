"""Synthetic speech of single words, without recordings: harmonics and noise, shaped by formants.

Voiced sounds are sums of the harmonics of a falling pitch, each with the gain of the resonances of the vocal tract
(parallel formants, as in Klatt, J. Acoust. Soc. Am. 67, 1980). Fricatives, bursts and breath are noise with a band
of frequencies. Voices differ in pitch, length of the vocal tract, tempo, tilt and breath.
"""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.phonemes import PHONEMES, PRONUNCIATIONS, Phoneme

RATE, HOP, NOISE_WINDOW = 16_000, 80, 320  # Hz, samples of a frame of 5 ms, samples
BANDWIDTHS = (70.0, 100.0, 140.0, 250.0)  # Hz, of the formants; the fourth is the same in all sounds
FOURTH_FORMANT, HIGHEST_HARMONIC = 3500.0, 5000.0  # Hz
FORMANT_SMOOTHING, GAIN_SMOOTHING = 7, 3  # frames
PEAK = 0.6
Frames = NDArray[np.float64]
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Voice:
    """A speaker."""

    pitch: float  # Hz, at the begin of a phrase
    tract: float  # factor of all formants: above 1 for short vocal tracts
    tempo: float  # factor of all durations
    tilt: float  # exponent of the decay of harmonics
    breath: float  # gain of noise in voiced sounds


VOICES = {
    "low": Voice(95, 0.92, 1.1, 1.3, 0.02),
    "deep": Voice(115, 0.97, 0.95, 1.0, 0.01),
    "middle": Voice(150, 1.03, 1.0, 1.2, 0.05),
    "high": Voice(205, 1.12, 1.0, 1.1, 0.03),
    "child": Voice(265, 1.24, 1.15, 0.9, 0.04),
}


@dataclass(frozen=True)
class Utterance:
    """A speech phrase, and where its words are."""

    samples: Samples
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]  # first and past-the-last sample of every word


def random_voice(rng: random.Random) -> Voice:
    """Return a voice between the extremes of `VOICES`."""
    pitch = rng.uniform(85, 285)
    tract = 0.9 + 0.34 * (pitch - 85) / 200 + rng.uniform(-0.05, 0.05)
    return Voice(pitch, tract, rng.uniform(0.85, 1.25), rng.uniform(0.8, 1.4), rng.uniform(0.0, 0.06))


def speak(words: tuple[str, ...], voice: Voice, rng: random.Random) -> Utterance:
    """Synthesize words with pauses between them."""
    parts = [_silence(rng.uniform(0.05, 0.15))]
    spans: list[tuple[int, int]] = []
    for word in words:
        sound = _word(word, voice, rng, pitch_factor=1 - 0.15 * len(spans) / len(words))
        begin = sum(map(len, parts))
        parts += [sound, _silence(rng.uniform(0.04, 0.12))]
        spans.append((begin, begin + len(sound)))
    samples = np.concatenate(parts)
    samples *= PEAK * rng.uniform(0.5, 1.0) / np.abs(samples).max()
    samples += 10 ** rng.uniform(-4.0, -2.7) * _noise(len(samples), rng)
    return Utterance(samples.astype(np.float32), words, tuple(spans))


def _silence(seconds: float) -> Frames:
    return np.zeros(round(seconds * RATE / HOP) * HOP)


def _noise(count: int, rng: random.Random) -> Frames:
    return np.random.default_rng(rng.getrandbits(63)).standard_normal(count)


def _word(word: str, voice: Voice, rng: random.Random, pitch_factor: float) -> Frames:
    tracks = _tracks([PHONEMES[name] for name in PRONUNCIATIONS[word]], voice, rng)
    count = len(tracks) * HOP
    decline = np.linspace(1.04, 0.9, count) * (1 + 0.01 * np.sin(2 * np.pi * 5 * np.arange(count) / RATE))
    pitch = voice.pitch * pitch_factor * rng.uniform(0.95, 1.05) * decline
    voiced = _harmonics(tracks, pitch, voice.tilt)
    breath = voice.breath * _per_sample(tracks[:, 3]) * _noise(count, rng)
    return voiced + breath + _shaped_noise(tracks, _noise(count + NOISE_WINDOW, rng))


def _tracks(phonemes: list[Phoneme], voice: Voice, rng: random.Random) -> Frames:
    """Return the parameters of every frame, smoothed: three formants, voicing, and gain, center and width of noise."""
    rows = []
    for phoneme in phonemes:
        count = max(2, round(phoneme.seconds * voice.tempo * rng.uniform(0.9, 1.1) * RATE / HOP))
        shift = rng.uniform(0.97, 1.03) * voice.tract
        share = np.linspace(0, 1, count)[:, None]
        formants = shift * ((1 - share) * np.array(phoneme.begin) + share * np.array(phoneme.end or phoneme.begin))
        others = np.tile([phoneme.voicing, phoneme.noise, phoneme.center * shift, phoneme.width], (count, 1))
        rows.append(np.hstack([formants, others]))
    tracks = np.vstack(rows)
    smoothed = [_smooth(tracks[:, :3], FORMANT_SMOOTHING), _smooth(tracks[:, 3:5], GAIN_SMOOTHING), tracks[:, 5:]]
    return np.hstack(smoothed)


def _smooth(tracks: Frames, size: int) -> Frames:
    padded = np.pad(tracks, ((size // 2, size // 2), (0, 0)), mode="edge")
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, size, axis=0).mean(-1))


def _harmonics(tracks: Frames, pitch: Frames, tilt: float) -> Frames:
    """Return the sum of the harmonics below 5 kHz, with the gains of the formants at their frequencies.

    Gains are computed for every frame; sines of multiples of the phase follow from the two before (Chebyshev).
    """
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    numbers = np.arange(1, int(HIGHEST_HARMONIC / pitch.min()) + 1)
    frequencies = numbers * pitch[::HOP, None]
    formants = np.hstack([tracks[:, :3], np.full((len(tracks), 1), FOURTH_FORMANT)])
    half = np.array(BANDWIDTHS) / 2
    gains = (half / np.hypot(frequencies[..., None] - formants[:, None], half)).sum(-1)
    gains *= numbers**-tilt * (frequencies < HIGHEST_HARMONIC) * tracks[:, 3:4]
    before, sine, twice = np.zeros(len(phase)), np.sin(phase), 2 * np.cos(phase)
    total = np.zeros(len(phase))
    for column in gains.T:
        total += _per_sample(column) * sine
        before, sine = sine, twice * sine - before
    return total


def _per_sample(values: Frames) -> Frames:
    """Interpolate the values of frames linearly."""
    steps = np.diff(values, append=values[-1])
    return np.asarray((values[:, None] + steps[:, None] * (np.arange(HOP) / HOP)).ravel())


def _shaped_noise(tracks: Frames, noise: Frames) -> Frames:
    """Return noise with the band and the gain of every frame, from overlapping windows."""
    frequencies = np.fft.rfftfreq(NOISE_WINDOW, 1 / RATE)
    windows = np.lib.stride_tricks.sliding_window_view(noise, NOISE_WINDOW)[::HOP][: len(tracks)]
    gains, centers, widths = tracks[:, 4:5], tracks[:, 5:6], tracks[:, 6:7]
    bands = gains * np.exp(-0.5 * ((frequencies - centers) / np.maximum(widths, 1)) ** 2)
    shaped = np.fft.irfft(np.fft.rfft(windows * np.hanning(NOISE_WINDOW)) * bands, NOISE_WINDOW)
    total = np.zeros(len(tracks) * HOP + NOISE_WINDOW)
    for index, part in enumerate(shaped):
        total[index * HOP : index * HOP + NOISE_WINDOW] += part
    return total[NOISE_WINDOW // 2 :][: len(tracks) * HOP]
