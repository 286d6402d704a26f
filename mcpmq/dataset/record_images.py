"""Images as records of training sets give them: paths, data URLs, and bytes."""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mcpmq.dataset.draft import ImageReference
from mcpmq.errors import DatasetError

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")
URL_HINT = "download the image into the folder of the set, and name the file; mcpmq fetches no image"
VALUE_HINT = "give the path of a file, a data URL, or the bytes of a file"


def image_references(value: Any, where: str) -> Iterator[ImageReference]:
    """Yield the images of a value: one of them, or a list.

    Raises:
        DatasetError: a value is not an image, or is a URL, which is never fetched.
    """
    for one in value if isinstance(value, list) else [value]:
        yield image_reference(one, where)


def image_reference(value: Any, where: str) -> ImageReference:
    """Return one image; see `image_references`."""
    if isinstance(value, bytes) and value:
        return ImageReference("bytes", value)
    if isinstance(value, str) and value:
        return _from_text(value, where)
    if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
        return _from_struct(value, where)
    raise DatasetError(f"{where}: an image is `{_short(value)}`", VALUE_HINT)


def _from_text(value: str, where: str) -> ImageReference:
    if found := DATA_URL.match(value):
        return ImageReference("data URL", _decode(value[found.end() :], where))
    path = value.removeprefix("file://")
    if "://" in path:
        raise DatasetError(f"{where}: the image is a URL: `{_short(value)}`", URL_HINT)
    return ImageReference(path)


def _from_struct(value: Mapping[str, Any], where: str) -> ImageReference:
    """Return the image of a struct with the bytes of a file, the column type of Hugging Face datasets."""
    content, path = value.get("bytes"), value.get("path")
    if isinstance(content, str) and content:
        content = _decode(content, where)
    if isinstance(content, bytes) and content:
        return ImageReference(path if isinstance(path, str) and path else "bytes", content)
    if isinstance(path, str) and path and not content:
        return _from_text(path, where)
    raise DatasetError(f"{where}: an image has neither `bytes` nor `path`", VALUE_HINT)


def _decode(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DatasetError(f"{where}: an image is not valid base64: {error}", VALUE_HINT) from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
