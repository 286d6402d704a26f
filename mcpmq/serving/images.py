"""Decode the images of requests once, within limits that are checked in their headers."""

import binascii
import re
from base64 import b64decode, b64encode
from io import BytesIO
from typing import TYPE_CHECKING

from mcpmq.errors import DatasetError
from mcpmq.serving.request_error import RequestError
from mcpmq.system.image_file import OversizedImage, decode_image

if TYPE_CHECKING:
    from PIL import Image

DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.IGNORECASE)
FAST_COMPRESSION = 1


def read_data_url(url: str) -> bytes:
    """Return the file in a data URL.

    Raises:
        RequestError: it is another URL, which is not fetched, or is not base64.
    """
    if not (found := DATA_URL.match(url)):
        raise RequestError(400, "an image is not a data URL `data:image/...;base64,...`; URLs are not fetched")
    try:
        return b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, "the data URL of an image is not base64") from None


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
