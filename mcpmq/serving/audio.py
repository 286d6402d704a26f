"""Decode the audio of requests once, and encode it for the engine."""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence

from mcpmq.errors import DatasetError, MissingExtra
from mcpmq.serving.request_error import RequestError
from mcpmq.system.audio_file import SAMPLING_RATE, Waveform, decode_audio, encode_wav


def decode_part(data: str, number: int) -> Waveform:
    """Return the audio of a part `input_audio`, whose file is in base64; `number` names it in errors.

    Raises:
        RequestError: it is not base64, not a WAV or FLAC file, damaged, or too long.
    """
    try:
        content = b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, f"audio {number} is not base64", "messages") from None
    try:
        return decode_audio(content, f"audio {number}")
    except MissingExtra:
        raise RequestError(400, f"audio {number} is a FLAC file, which this server does not decode: send WAV") from None
    except DatasetError as error:
        raise RequestError(400, f"{error}; {error.hint}", "messages") from error


def decode_all(parts: Sequence[str], max_seconds: float) -> Iterator[Waveform]:
    """Yield the audio of every part; the limit is that of all together.

    Raises:
        RequestError: one cannot be decoded, or they are longer than permitted.
    """
    total = 0.0
    for number, data in enumerate(parts, start=1):
        waveform = decode_part(data, number)
        total += len(waveform.samples) / SAMPLING_RATE
        if total > max_seconds:
            raise RequestError(413, f"more than {max_seconds:g} seconds of audio", "messages")
        yield waveform


def wav_part(waveform: Waveform) -> dict[str, object]:
    """Return a part `input_audio` with mono samples at 16 kHz."""
    data = b64encode(encode_wav(waveform.samples)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
