"""Requests to the server under test."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from mcpmq.serving.engine_process import EngineProcess

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: a client of it, and its engine."""

    client: httpx2.Client
    engine: EngineProcess


def png(width: int = 56, height: int = 56, seed: int = 0) -> bytes:
    """Return a PNG file of noise."""
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return the file of an image."""
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def data_url(content: bytes, media_type: str = "image/png") -> str:
    """Return a data URL."""
    return f"data:{media_type};base64,{b64encode(content).decode()}"


def image_part(content: bytes) -> dict[str, Any]:
    """Return the part of a message with an image."""
    return {"type": "image_url", "image_url": {"url": data_url(content)}}


def user(*content: Any) -> dict[str, Any]:
    """Return a message of the user with texts and parts."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts}


def chat(*content: Any, **fields: Any) -> dict[str, Any]:
    """Return a request with one message and a short answer."""
    return {"messages": [user(*content)], "max_tokens": 4, **fields}


def error_message(response: httpx2.Response) -> str:
    """Return the message of an error in OpenAI's form."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    return str(error["message"])
