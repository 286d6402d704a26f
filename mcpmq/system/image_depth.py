"""Reduce samples of 12 to 32 bits to 8 bits, by the range of their type."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mcpmq.errors import DatasetError

BITS_TAG, PHOTOMETRIC_TAG, SAMPLE_FORMAT_TAG = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2
GRAY_MAXIMUM = 65535  # of PNG, and of PPM after Pillow has scaled it
MIN_USED_RANGE = 16  # a smaller fraction of the range is less than 16 of the 256 levels: almost one color
FLOAT_TOLERANCE = 1e-6
ROWS_PER_CHUNK = 256
RANGE_HINT = "scale its values to the whole range, and save it as an 8-bit PNG"


def is_deep_gray(image: Image.Image) -> bool:
    """Return whether an image has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def raw_gray(image: Image.Image) -> tuple[NDArray[Any], float]:
    """Return the stored values [height, width] of a deep gray image, and the largest value of their type."""
    values, tags = np.asarray(image), _tags(image)
    if image.mode == "F":
        return values, 1.0
    if BITS_TAG not in tags:
        return values, GRAY_MAXIMUM
    bits, signed = tags[BITS_TAG][0], SIGNED in tags.get(SAMPLE_FORMAT_TAG, ())
    if bits == 32 and not signed:
        values = values.view(np.uint32)
    return values, 2.0 ** (bits - signed) - 1


def reduce_gray(image: Image.Image) -> Image.Image:
    """Scale a deep gray image to 8 bits: integers by the largest value of their type, floats by 1.

    Raises:
        DatasetError: a value is negative or not finite, a float exceeds 1, or the values use a small part of the range.
    """
    values, maximum = raw_gray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= -FLOAT_TOLERANCE and high <= maximum + FLOAT_TOLERANCE):  # true for NaN
        raise DatasetError(f"has values from {_number(low)} to {_number(high)}, not 0 to {maximum:,.0f}", RANGE_HINT)
    if 0 < high - low < maximum / MIN_USED_RANGE:
        raise DatasetError(f"uses only the values {_number(low)} to {_number(high)} of 0 to {maximum:,.0f}", RANGE_HINT)
    inverted, levels = _tags(image).get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO, np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS_PER_CHUNK):
        rows = slice(start, start + ROWS_PER_CHUNK)
        scaled = np.rint(values[rows].astype(np.float64) * 255 / maximum).clip(0, 255)
        levels[rows] = 255 - scaled if inverted else scaled
    return Image.fromarray(levels)


def check_reduced(image: Image.Image, stored: str) -> None:
    """Check an image with channels that Pillow has reduced from the layout `stored` to 8 bits.

    Raises:
        DatasetError: samples are signed, or 16-bit channels use a small part of the range.
    """
    if SIGNED in _tags(image).get(SAMPLE_FORMAT_TAG, ()):
        raise DatasetError("has signed 8-bit samples", RANGE_HINT)
    if ";16" not in stored or image.mode not in ("RGB", "RGBA"):
        return
    levels = np.asarray(image)[..., :3]
    if (high := int(levels.max())) < 256 // MIN_USED_RANGE:
        raise DatasetError(f"uses only the values 0 to {high * 256 + 255:,} of 0 to 65,535", RANGE_HINT)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:g}"


def _tags(image: Image.Image) -> Mapping[int, Any]:
    found: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return found
