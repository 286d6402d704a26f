"""Images of requests: formats, limits in the header, orientation, and URLs that are not fetched."""

import struct
import zlib
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mcpmq.serving.images import decode, png_data_url, read_data_url
from mcpmq.serving.request_error import RequestError
from tests.serving.requests import data_url, encoded, png


def _declared(width: int, height: int) -> bytes:
    """Return the begin of a PNG file that declares a size, with one byte of data."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDATx"]
    packed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/image.png",
        "https://example.com/image.png",
        "file:///etc/passwd",
        "image.png",
        "data:text/html;base64,aGk=",
        "data:image/png,aGk=",
        "data:image/png;base64,@@@",
        "data:image/png;base64,a",
        "data:image/png;base64,\u00e9",
        "",
    ],
)
def test_only_data_urls_are_read(url: str) -> None:
    """Other URLs and other encodings are errors of the client."""
    with pytest.raises(RequestError) as caught:
        read_data_url(url)

    assert caught.value.status == 400


def test_pixels_reach_the_engine_unchanged() -> None:
    """The PNG of a decoded image has its pixels."""
    content = png(40, 30)

    decoded = decode(read_data_url(data_url(content)), 1, 1200)

    copy = Image.open(BytesIO(b64decode(png_data_url(decoded).partition(",")[2])))
    assert np.array_equal(np.asarray(copy), np.asarray(Image.open(BytesIO(content))))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_of_the_web_are_decoded(format: str) -> None:
    """Also formats that llama.cpp does not decode are accepted."""
    assert decode(encoded(Image.new("RGB", (20, 10), "red"), format), 1, 200).size == (20, 10)


def test_the_orientation_of_photographs_is_applied() -> None:
    """An image whose EXIF data declares a quarter turn is upright."""
    exif = Image.Exif()
    exif[0x0112] = 6

    assert decode(encoded(Image.new("RGB", (20, 10), "red"), "JPEG", exif=exif), 1, 200).size == (10, 20)


@pytest.mark.parametrize(("width", "height"), [(16_000, 16_000), (20_000, 20_000), (101, 100)])
def test_large_images_are_rejected_by_their_header(width: int, height: int) -> None:
    """The size in the header decides: the file has no pixels, and is not decoded."""
    with pytest.raises(RequestError) as caught:
        decode(_declared(width, height), 3, 10_000)

    assert caught.value.status == 413
    assert str(caught.value).startswith("image 3 ")


@pytest.mark.parametrize("content", [b"", b"hello", png()[:300], b"<svg/>", _declared(10, 10), _declared(0, 0)])
def test_damaged_files_are_errors_of_the_client(content: bytes) -> None:
    """Files that are not images, or are incomplete, have the status 400 and no path in the message."""
    with pytest.raises(RequestError) as caught:
        decode(content, 1, 10_000)

    assert caught.value.status == 400
    assert "/" not in str(caught.value)
