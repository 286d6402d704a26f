"""Reading of audio files, compared with other readers and with signals of known frequencies."""

import io
import struct
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mcpmq.errors import DatasetError, MissingExtra
from mcpmq.system import audio_file
from mcpmq.system.audio_file import MAX_SECONDS, SAMPLING_RATE, decode_audio, encode_wav, read_audio, stored_audio
from tests.audio_tools import FLOAT, PCM, wav_bytes

soundfile = pytest.importorskip("soundfile")
ENCODINGS = [(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)]


def _samples(channels: int = 1, frames: int = 37) -> NDArray[np.float64]:
    return np.random.default_rng(channels).uniform(-1, 0.99, (frames, channels))


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("tag", "bits"), ENCODINGS)
def test_all_encodings_have_the_values_of_soundfile(tag: int, bits: int, extensible: bool) -> None:
    """Integers of 8 to 32 bits and floats of 32 and 64, with a plain and with an extensible header."""
    content = wav_bytes(_samples(), bits=bits, tag=tag, extensible=extensible)
    expected, rate = soundfile.read(io.BytesIO(content), dtype="float64")

    read = decode_audio(content, "audio")

    assert rate == SAMPLING_RATE
    np.testing.assert_allclose(read.samples, expected, rtol=0, atol=1e-7)
    assert read.samples.dtype == np.float32
    assert read.stored.encoding == f"{bits}-bit {'float' if tag == FLOAT else 'PCM'}"


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_integers_have_the_values_of_the_standard_library(bits: int) -> None:
    """The frames of the module `wave`, divided by half of the range."""
    content = wav_bytes(_samples(), bits=bits)
    with wave.open(io.BytesIO(content)) as file:
        frames, width = file.readframes(file.getnframes()), file.getsampwidth()
    parts = [frames[start : start + width] for start in range(0, len(frames), width)]
    expected = [int.from_bytes(part, "little", signed=True) / 2 ** (bits - 1) for part in parts]

    np.testing.assert_allclose(decode_audio(content, "audio").samples, expected, rtol=0, atol=1e-7)


def test_channels_are_averaged() -> None:
    """The mean of three channels; their number is recorded."""
    samples = _samples(channels=3)
    read = decode_audio(wav_bytes(samples, bits=64, tag=FLOAT), "audio")

    np.testing.assert_allclose(read.samples, samples.mean(axis=1), rtol=0, atol=1e-7)
    assert (read.stored.channels, read.stored.frames) == (3, 37)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_keep_frequencies(rate: int) -> None:
    """A tone of 440 Hz stays one at 16 kHz; one above 8 kHz is removed, not mirrored."""
    time = np.arange(rate) / rate
    tones = [0.5 * np.sin(2 * np.pi * frequency * time)[:, None] for frequency in (440, 9_500)]
    low, high = (decode_audio(wav_bytes(tone, rate, 64, FLOAT), "audio") for tone in tones)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLING_RATE) / SAMPLING_RATE)

    assert len(low.samples) == SAMPLING_RATE
    assert low.stored.rate == rate
    np.testing.assert_allclose(low.samples[800:-800], expected[800:-800], rtol=0, atol=2e-3)
    if rate > 2 * 9_500:
        assert np.abs(high.samples[800:-800]).max() < 0.01


def test_flac_is_read_with_soundfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its integers are exact; without the package the error names the extra."""
    samples = np.round(_samples(2, 1000) * 2**15) / 2**15
    soundfile.write(tmp_path / "a.flac", samples, SAMPLING_RATE, subtype="PCM_16")

    read = read_audio(tmp_path / "a.flac", "sample `a`")

    np.testing.assert_allclose(read.samples, samples.mean(axis=1), rtol=0, atol=1e-7)
    assert read.stored == stored_audio(tmp_path / "a.flac")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtra) as caught:
        read_audio(tmp_path / "a.flac", "sample `a`")
    assert "mcpmq[audio]" in caught.value.hint


def test_a_file_of_a_pipe_has_no_data_size() -> None:
    """Programs that write to a pipe leave the size of the data as 0 or as the largest number."""
    content = wav_bytes(_samples())
    place = content.index(b"data") + 4
    for size in (0, 0xFFFFFFFF):
        piped = content[:place] + struct.pack("<I", size) + content[place + 4 :]
        assert len(decode_audio(piped, "audio").samples) == 37


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ID3\x04rest", "is MP3, neither WAV nor FLAC"),
        (b"\0\0\0\x20ftypM4A ", "is MP4, neither WAV nor FLAC"),
        (b"", "is neither WAV nor FLAC"),
        (wav_bytes(_samples())[:-9], "is truncated: it has 65 of 74 bytes"),
        (wav_bytes(_samples()).replace(b"data", b"dat_"), "no `fmt ` or no `data`"),
        (wav_bytes(_samples(), rate=400), "1 channels at 400 Hz"),
        (wav_bytes(_samples(frames=0)), "has no samples"),
        (wav_bytes(np.zeros((1000 * (MAX_SECONDS + 1), 1)), 1000, 8), "has 301.0 seconds, more than 300"),
        (wav_bytes(_samples(), tag=6, bits=8), "has the encoding 6 with 8 bits"),
        (wav_bytes(np.full((9, 1), np.nan), tag=FLOAT, bits=32), "samples outside of -4 to 4"),
        (wav_bytes(np.full((9, 1), 20_000.0), tag=FLOAT, bits=32), "samples outside of -4 to 4"),
        (b"fLaC" + bytes(60), "is damaged"),
        (b"RIFF\0\0\0\0WAVEfmt \x02\0\0\0\1\0data\2\0\0\0\0\0", "is damaged"),
    ],
)
def test_other_files_are_rejected(content: bytes, message: str) -> None:
    """The error has the name of the audio and the reason."""
    with pytest.raises(DatasetError, match=f"^audio `a` .*{message}"):
        decode_audio(content, "audio `a`")


def test_encoded_audio_is_read_again() -> None:
    """The samples are equal, and soundfile reads the same ones."""
    samples = _samples()[:, 0].astype(np.float32)
    content = encode_wav(samples)
    np.testing.assert_array_equal(decode_audio(content, "audio").samples, samples)
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(content), dtype="float32")[0], samples)


def test_a_missing_and_a_large_file_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are read."""
    monkeypatch.setattr(audio_file, "MAX_AUDIO_NBYTES", 50)
    (tmp_path / "a.wav").write_bytes(wav_bytes(_samples()))
    for name, message in (("a.wav", "more than 50"), ("b.wav", "not a regular file")):
        with pytest.raises(DatasetError, match=f"sample `1`: the audio `{name}` .*{message}"):
            read_audio(tmp_path / name, "sample `1`")
