"""Limits of the server against requests that would exhaust memory, processor time or connections."""

from dataclasses import dataclass

from mcpmq.serving.engine import MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request, and of all requests at a time."""

    body_nbytes: int = 20 << 20
    body_seconds: float = 30.0  # to receive a body
    header_seconds: float = 10.0  # to receive the headers of the first request of a connection
    connections: int = 256
    bodies: int = 16  # received and parsed at a time
    json_items: int = 100_000  # brackets, colons and commas of a JSON body
    images: int = 8  # in all messages
    pixels: int = 24_000_000  # in all images: as PNG in base64 they fit into the 100 MB that llama.cpp accepts
    videos: int = 2  # in all messages
    video_pixels: int = 2_000_000_000  # in all frames of a video, which are decoded once to count them
    video_file_frames: int = 30_000  # of a video; small frames take more time than their pixels
    video_seconds: float = 3600.0  # of a video; processors list the times of its frames
    video_frames: int = 256  # of a video that the processor samples
    audios: int = 8  # in all messages
    audio_seconds: float = 120.0  # in all audios
    messages: int = 100
    text_characters: int = 200_000  # in all messages
    schema_depth: int = 32
    schema_number: int = 1000  # of repetitions in a JSON schema; llama.cpp expands them
    tokens: int = MAX_TOKENS  # of an answer
    queue: int = 8  # requests that wait for the engine
    seconds: float = 600.0  # of the engine for one answer
    write_seconds: float = 30.0  # without progress of a client that reads an answer
    probe_seconds: float = 10.0  # for a reply of the engine after an answer that took too long


LIMITS = Limits()
