"""Read audio files as mono samples at 16 kHz: WAV files of all integer and float encodings, and FLAC with soundfile."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcpmq.errors import DatasetError, MissingExtra

SAMPLING_RATE = 16_000  # Hz, of all audio encoders that mcpmq supports
MAX_SECONDS = 300
MAX_AUDIO_NBYTES = 1 << 28  # 300 seconds of 8 channels at 16 bits and 48 kHz have less
MAX_CHANNELS, MIN_RATE, MAX_RATE = 64, 1_000, 192_000
MAX_MAGNITUDE = 4.0  # of float samples, whose nominal range is [-1, 1]: 12 dB above it
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format tags of WAV
UNKNOWN_NBYTES = (0, 0xFFFFFFFF)  # data size in the header of a WAV file that was written to a pipe
CONVERT_HINT = "convert it, for example with `ffmpeg -i input -ac 1 -ar 16000 output.wav`"
# Beginning of the files of formats that have no reader here.
OTHER_FORMATS = {b"ID3": "MP3", b"\xff\xfb": "MP3", b"\xff\xf3": "MP3", b"OggS": "Ogg", b"FORM": "AIFF"}
Samples = NDArray[np.float64]  # [frames, channels]


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """The encoding of an audio file, before its conversion."""

    encoding: str
    rate: int  # Hz
    channels: int
    frames: int  # samples of each channel

    @property
    def seconds(self) -> float:
        """Return the duration."""
        return self.frames / self.rate


@dataclass(frozen=True, slots=True)
class Waveform:
    """Samples at 16 kHz, float32 [samples], and the encoding that they were converted from."""

    samples: NDArray[np.float32]
    stored: StoredAudio


def read_audio(path: Path, label: str) -> Waveform:
    """Return the audio of a file; `label` names its sample in errors.

    Several channels are mixed to their mean, and other sampling rates are converted by a polyphase filter
    (`scipy.signal.resample_poly`), which removes frequencies above the half of the lower rate.

    Raises:
        DatasetError: the file is not a WAV or FLAC file, is damaged, or is too large or too long.
        MissingExtra: it is a FLAC file, and soundfile is not installed.
    """
    name = f"{label}: the audio `{path.name}`"
    try:
        if not path.is_file():
            raise DatasetError(f"{name} is not a regular file", "give the path of an audio file")
        _check_nbytes(path.stat().st_size, name)
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error}", "check the file and its permissions") from error
    return decode_audio(content, name)


def decode_audio(content: bytes, label: str) -> Waveform:
    """Return the audio of the bytes of a file, as `read_audio` does; `label` names it in errors."""
    _check_nbytes(len(content), label)
    try:
        samples, stored = _flac(content) if content[:4] == b"fLaC" else _wav(content)
    except DatasetError as error:
        raise DatasetError(f"{label} {error}", error.hint) from error
    except (struct.error, ValueError) as error:
        raise DatasetError(f"{label} is damaged: {error}", CONVERT_HINT) from error
    if not np.isfinite(samples).all() or np.abs(samples).max() > MAX_MAGNITUDE:
        raise DatasetError(f"{label} has samples outside of -{MAX_MAGNITUDE:g} to {MAX_MAGNITUDE:g}", CONVERT_HINT)
    return Waveform(_resample(samples.mean(axis=1), stored.rate).astype(np.float32), stored)


def encode_wav(samples: NDArray[np.float32]) -> bytes:
    """Return mono samples at 16 kHz as a WAV file of 32-bit floats."""
    header = struct.pack("<HHIIHH", FLOAT, 1, SAMPLING_RATE, 4 * SAMPLING_RATE, 4, 32)
    data = samples.astype("<f4").tobytes()
    chunks = b"".join(name + struct.pack("<I", len(one)) + one for name, one in ((b"fmt ", header), (b"data", data)))
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def stored_audio(file: Path | bytes) -> StoredAudio:
    """Return the encoding of a file that was read before."""
    content = file if isinstance(file, bytes) else file.read_bytes()
    return (_flac(content) if content[:4] == b"fLaC" else _wav(content))[1]


def _check_nbytes(nbytes: int, name: str) -> None:
    if nbytes > MAX_AUDIO_NBYTES:
        raise DatasetError(f"{name} has {nbytes:,} bytes, more than {MAX_AUDIO_NBYTES:,}", "shorten it")


def _resample(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    if rate == SAMPLING_RATE:
        return samples
    from scipy.signal import resample_poly

    divisor = gcd(rate, SAMPLING_RATE)
    converted: NDArray[np.float64] = resample_poly(samples, SAMPLING_RATE // divisor, rate // divisor)
    return converted


def _checked(encoding: str, rate: int, channels: int, frames: int) -> StoredAudio:
    """Return the encoding after a check of its numbers.

    Raises:
        DatasetError: the file is empty or too long, or has an unusual rate or number of channels.
    """
    if not MIN_RATE <= rate <= MAX_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise DatasetError(f"has {channels:,} channels at {rate:,} Hz, which is not supported", CONVERT_HINT)
    if not frames:
        raise DatasetError("has no samples", "record it again")
    stored = StoredAudio(encoding, rate, channels, frames)
    if stored.seconds > MAX_SECONDS:
        raise DatasetError(f"has {stored.seconds:,.1f} seconds, more than {MAX_SECONDS}", "shorten it")
    return stored


def _wav(content: bytes) -> tuple[Samples, StoredAudio]:
    """Decode a RIFF file of linear PCM or IEEE floats; source: Multimedia Programming Interface 1.0, chapter 3."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        found = next((name for mark, name in OTHER_FORMATS.items() if content.startswith(mark)), "")
        found = found or ("MP4" if content[4:8] == b"ftyp" else "")
        raise DatasetError(f"is {f'{found}, ' if found else ''}neither WAV nor FLAC", CONVERT_HINT)
    chunks = dict(reversed(list(_chunks(content))))  # the first chunk of a name counts
    if not {b"fmt ", b"data"} <= chunks.keys():
        raise DatasetError("is damaged: it has no `fmt ` or no `data` chunk", CONVERT_HINT)
    header = bytes(chunks[b"fmt "])
    tag, channels, rate, _, frame_nbytes, bits = struct.unpack_from("<HHIIHH", header)
    if tag == EXTENSIBLE:
        tag = struct.unpack_from("<H", header, 24)[0]
    data, width = chunks[b"data"], bits // 8
    if frame_nbytes != channels * width or not frame_nbytes:
        raise DatasetError(f"is damaged: {channels} channels of {bits} bits in {frame_nbytes} bytes", CONVERT_HINT)
    stored = _checked(f"{bits}-bit {'float' if tag == FLOAT else 'PCM'}", rate, channels, len(data) // frame_nbytes)
    return _values(data[: stored.frames * frame_nbytes], tag, width).reshape(-1, channels), stored


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    place, view = 12, memoryview(content)
    while place + 8 <= len(content):
        name, nbytes = struct.unpack_from("<4sI", content, place)
        place += 8
        if name == b"data" and nbytes in UNKNOWN_NBYTES:
            nbytes = len(content) - place
        if nbytes > len(content) - place:
            raise DatasetError(
                f"is truncated: it has {len(content) - place:,} of {nbytes:,} bytes of a chunk", "copy the file again"
            )
        yield name, view[place : place + nbytes]
        place += nbytes + nbytes % 2


def _values(data: memoryview, tag: int, width: int) -> NDArray[np.float64]:
    """Return samples in [-1, 1): integers are divided by the half of their range; 8 bits are unsigned."""
    if tag == FLOAT and width in (4, 8):
        return np.frombuffer(data, f"<f{width}").astype(np.float64)
    if tag != PCM or width not in (1, 2, 3, 4):
        raise DatasetError(f"has the encoding {tag} with {8 * width} bits, which is not supported", CONVERT_HINT)
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if width == 3:  # as the upper bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(data, f"<i{width}") / 2.0 ** (8 * width - 1)


def _flac(content: bytes) -> tuple[Samples, StoredAudio]:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise MissingExtra("audio", "soundfile") from error
    try:
        with soundfile.SoundFile(BytesIO(content)) as file:
            stored = _checked(f"FLAC, {file.subtype_info}", file.samplerate, file.channels, file.frames)
            samples: Samples = file.read(dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DatasetError(f"is damaged: {error}", CONVERT_HINT) from error
    if len(samples) != stored.frames:
        raise DatasetError(f"is truncated: it has {len(samples):,} of {stored.frames:,} samples", "copy the file again")
    return samples, stored
