"""Writers of WAV files in all encodings, as the format specification defines them, and synthetic audio."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcpmq.system.audio_file import SAMPLING_RATE, StoredAudio, Waveform

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


def wav_bytes(
    samples: ArrayLike, rate: int = SAMPLING_RATE, bits: int = 16, tag: int = PCM, extensible: bool = False
) -> bytes:
    """Return a WAV file of samples [frames, channels] in [-1, 1)."""
    values = np.asarray(samples, np.float64)
    channels, width = values.shape[1], bits // 8
    header = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width, channels * width, bits)
    if extensible:
        guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
        header = struct.pack("<H", EXTENSIBLE) + header[2:] + struct.pack("<HHI", 22, bits, 0) + guid
    data = _encode(values.ravel(), bits, tag)
    chunks = [(b"fmt ", header), (b"LIST", b"odd"), (b"data", data)]
    body = b"".join(name + struct.pack("<I", len(one)) + one + bytes(len(one) % 2) for name, one in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def _encode(values: NDArray[np.float64], bits: int, tag: int) -> bytes:
    if tag == FLOAT:
        return struct.pack(f"<{len(values)}{'fd'[bits // 64]}", *values)
    integers = np.round(values * 2 ** (bits - 1)).astype(np.int64)
    if bits == 8:
        return bytes((integers + 128).tolist())
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in integers)


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Return a sweep with noise, float32 [samples] at 16 kHz."""
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    random = np.random.default_rng(seed).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 150 * time) * time) + 0.05 * random).astype(np.float32)


def waveform(seconds: float, seed: int = 0) -> Waveform:
    """Return `noise` as decoded audio."""
    samples = noise(seconds, seed)
    return Waveform(samples, StoredAudio("16-bit PCM", SAMPLING_RATE, 1, len(samples)))


def write_wav(file: Path, seconds: float, seed: int = 0, rate: int = SAMPLING_RATE) -> Path:
    """Write `noise` as a WAV file of 16 bits, played at this rate."""
    file.write_bytes(wav_bytes(noise(seconds, seed)[:, None], rate))
    return file
