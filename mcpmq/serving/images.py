"""Decode the images of requests once, within limits that are checked in their headers."""

import binascii
import re
from base64 import b64decode, b64encode
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from mcpmq.errors import DatasetError
from mcpmq.serving.request_error import RequestError
from mcpmq.system.image_file import OversizedImage, decode_image

if TYPE_CHECKING:
    from PIL import Image

DATA_URL = r"data:%s/[a-z0-9.+-]{1,32};base64,"
NAMES = {"image": "an image", "video": "a video"}
FAST_COMPRESSION = 1


def read_data_url(url: str, kind: Literal["image", "video"] = "image") -> bytes:
    """Return the file in a data URL of an image or a video.

    Raises:
        RequestError: it is another URL, which is not fetched, or is not base64.
    """
    name = NAMES[kind]
    if not (found := re.match(DATA_URL % kind, url, re.IGNORECASE)):
        raise RequestError(400, f"{name} is not a data URL `data:{kind}/...;base64,...`; URLs are not fetched")
    try:
        return b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, f"the data URL of {name} is not base64") from None


def decode(content: bytes, number: int, max_pixels: int) -> "Image.Image":
    """Return the image of a file, upright and in sRGB; `number` names it in errors.

    Raises:
        RequestError: it has more pixels than permitted, or cannot be read.
    """
    try:
        return decode_image(content, f"image {number}", max_pixels)
    except OversizedImage as error:
        raise RequestError(413, str(error)) from error
    except DatasetError as error:
        raise RequestError(400, str(error)) from error


def png_data_url(image: "Image.Image") -> str:
    """Return an image as a data URL, in PNG without loss."""
    stream = BytesIO()
    image.save(stream, "PNG", compress_level=FAST_COMPRESSION)
    return "data:image/png;base64," + b64encode(stream.getbuffer()).decode()
