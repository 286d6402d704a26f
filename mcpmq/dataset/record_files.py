"""Image, video and audio files as records of training sets give them: paths, data URLs, and bytes."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mcpmq.dataset.draft import AudioReference, FileReference, ImageReference
from mcpmq.errors import DatasetError

DATA_URL = re.compile(r"data:(?:image|video|audio)/[\w.+-]+;base64,")
URL_HINT = "download the {0} into the folder of the set, and name the file; mcpmq fetches no {0}"
VALUE_HINT = "give the path of a file, a data URL, or the bytes of a file"
ARTICLES = {"image": "an image", "video": "a video", "audio": "an audio"}


def image_references(value: Any, where: str) -> Iterator[ImageReference]:
    """Yield the images of a value: one of them, or a list.

    Raises:
        DatasetError: a value is not an image, or is a URL, which is never fetched.
    """
    for one in value if isinstance(value, list) else [value]:
        yield image_reference(one, where)


def image_reference(value: Any, where: str) -> ImageReference:
    """Return one image; see `image_references`."""
    found = file_reference(value, where, "image")
    return ImageReference(found.name, found.content)


def audio_references(value: Any, where: str) -> Iterator[AudioReference]:
    """Yield the audios of a value: one of them, or a list.

    Raises:
        DatasetError: a value is not an audio, or is a URL, which is never fetched.
    """
    for one in value if isinstance(value, list) else [value]:
        yield audio_reference(one, where)


def audio_reference(value: Any, where: str) -> AudioReference:
    """Return one audio; see `audio_references`. OpenAI's messages have base64 text under `data`."""
    if isinstance(value, Mapping) and value.keys() == {"data", "format"} and isinstance(value["data"], str):
        return AudioReference("data", _decode(value["data"], where, "audio"))
    found = file_reference(value, where, "audio")
    return AudioReference(found.name, found.content)


def file_reference(value: Any, where: str, kind: str) -> FileReference:
    """Return the file of an image, a video or an audio.

    Raises:
        DatasetError: the value is not a file, or is a URL, which is never fetched.
    """
    if isinstance(value, bytes) and value:
        return FileReference("bytes", value)
    if isinstance(value, str) and value:
        return _from_text(value, where, kind)
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        return _from_struct(value, where, kind)
    raise DatasetError(f"{where}: {ARTICLES[kind]} is `{_short(value)}`", VALUE_HINT)


def _from_text(value: str, where: str, kind: str) -> FileReference:
    if found := DATA_URL.match(value):
        return FileReference("data URL", _decode(value[found.end() :], where, kind))
    path = value.removeprefix("file://")
    if "://" in path:
        raise DatasetError(f"{where}: the {kind} is a URL: `{_short(value)}`", URL_HINT.format(kind))
    return FileReference(path)


def _from_struct(value: Mapping[str, Any], where: str, kind: str) -> FileReference:
    """Return the file of a struct with its bytes, the column type of Hugging Face datasets."""
    content, path = value.get("bytes"), value.get("path")
    if isinstance(content, str) and content:
        content = _decode(content, where, kind)
    if isinstance(content, bytes) and content:
        return FileReference(path if isinstance(path, str) and path else "bytes", content)
    if isinstance(path, str) and path and not content:
        return _from_text(path, where, kind)
    raise DatasetError(f"{where}: {ARTICLES[kind]} has neither `bytes` nor `path`", VALUE_HINT)


def _decode(text: str, where: str, kind: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DatasetError(f"{where}: {ARTICLES[kind]} is not valid base64: {error}", VALUE_HINT) from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
