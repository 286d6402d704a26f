"""Read image files as image viewers show them: upright, 8 bits, sRGB, on a white background, the first frame."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mcpmq.errors import DatasetError
from mcpmq.system.image_color import check_color_space, to_srgb
from mcpmq.system.image_depth import check_reduced, is_deep_gray, reduce_gray

# Other formats of Pillow are documents, textures and video, and one of them, EPS, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF")
MAX_IMAGE_PIXELS = 64_000_000  # checked in the header against decompression bombs
MAX_IMAGE_NBYTES = 1 << 29  # 64 million pixels of 8 bytes
MAX_ASPECT_RATIO = 200  # slicing enlarges a narrow image to the area of a slice, which makes it very long
HEADER_NBYTES = 1 << 16  # color spaces are declared in it
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
CONVERT_HINT = "convert the image to PNG or JPEG"
HEIC_HINT = "convert the HEIC image to JPEG or PNG, for example with `heif-convert photo.heic photo.jpg`"
BLANK_HINT = "save it on a background of another color"
GRAY_SCALES = {"L;2": 85, "L;4": 17}  # factors of samples in PNG with 2 or 4 bits
ORIENTATION_TAG, SUBFILE_TAG, DNG_TAG = 0x0112, 0x00FE, 0xC612
REDUCED_IMAGE = 1  # bit of the subfile type: the page is a thumbnail
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Mask = NDArray[np.uint8]  # [height, width], 0 for transparent and 255 for opaque


class OversizedImage(DatasetError):
    """An image has more pixels or bytes than permitted."""


def read_image(path: Path, label: str) -> Image.Image:
    """Return the image of a file as 8-bit sRGB; `label` names its sample in errors.

    The EXIF orientation is applied, deep samples are scaled by the range of their type, a color profile is converted to
    sRGB, and transparent pixels are laid on white. Of several frames or pages, the first is returned.

    Raises:
        DatasetError: the file is not an image in one of `FORMATS`, is damaged or too large, or would lose its content:
            its values use a small part of their range, or it is blank on white.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, and of sizes that are checked here
            return _read(path)
    except DatasetError as error:
        raise DatasetError(f"{label}: the image `{path.name}` {error}", error.hint) from error
    except Exception as error:  # Pillow has no common exception
        raise _unreadable(f"{label}: the image `{path.name}`", error, _is_heic(path)) from error


def decode_image(content: bytes, label: str, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Return the image of the bytes of a file, as `read_image` does; `label` names it in errors.

    Raises:
        OversizedImage: its header declares more than `max_pixels`.
        DatasetError: it is not an image in one of `FORMATS`, is damaged, or would lose its content.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(BytesIO(content), max_pixels)
    except DatasetError as error:
        raise type(error)(f"{label} {error}", error.hint) from error
    except Exception as error:
        raise _unreadable(label, error, is_heic=_has_heic_brand(content[:64])) from error


def stored_size(file: Path | bytes) -> tuple[int, int]:
    """Return width and height in the header of an image that was read before; the EXIF orientation is not applied."""
    with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=_formats()) as image:
        return image.size


def _unreadable(name: str, error: Exception, is_heic: bool) -> DatasetError:
    if isinstance(error, Image.DecompressionBombError):
        return OversizedImage(f"{name} is too large: {error}", "shrink the image")
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"its content is not of the formats {', '.join(FORMATS)}"
    return DatasetError(f"{name} cannot be read: {reason}", HEIC_HINT if is_heic else CONVERT_HINT)


def _is_heic(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            header = stream.read(64)
    except OSError:
        return False
    return _has_heic_brand(header)


def _has_heic_brand(header: bytes) -> bool:
    return header[4:8] == b"ftyp" and b"avif" not in header and any(brand in header for brand in HEIC_BRANDS)


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        raise DatasetError("is not a regular file", "give the path of an image file")
    if (nbytes := path.stat().st_size) > MAX_IMAGE_NBYTES:
        raise OversizedImage(f"has {nbytes:,} bytes, more than {MAX_IMAGE_NBYTES:,}", "shrink the image")
    with path.open("rb") as stream:
        return _decode(stream, MAX_IMAGE_PIXELS)


def _decode(stream: BinaryIO, max_pixels: int) -> Image.Image:
    check_color_space(stream.read(HEADER_NBYTES))
    with Image.open(stream, formats=_formats()) as image:
        _check_header(image, max_pixels)
        return _convert(image)


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_header(image: Image.Image, max_pixels: int) -> None:
    if (pixels := image.width * image.height) > max_pixels:
        raise OversizedImage(f"has {pixels:,} pixels, more than {max_pixels:,}", "shrink the image")
    shorter, longer = sorted(image.size)
    if longer > MAX_ASPECT_RATIO * shorter:
        size = f"{image.width}x{image.height}"
        raise DatasetError(f"has {size} pixels, an aspect ratio of more than {MAX_ASPECT_RATIO}", "crop the image")
    tags = getattr(image, "tag_v2", {})
    if DNG_TAG in tags or tags.get(SUBFILE_TAG, 0) & REDUCED_IMAGE:
        raise DatasetError("is a raw camera file, or its first page is a thumbnail", CONVERT_HINT)


def _convert(image: Image.Image, may_be_blank: bool = False) -> Image.Image:
    """Convert an opened image; its tile describes the stored samples until it is loaded."""
    tile = image.tile[0] if getattr(image, "tile", None) else ("", None, 0, "")  # type: ignore[attr-defined]
    stored, box = str(tile[3]), tile[1] if image.format == "GIF" else None
    image.load()
    mask = _mask(image, stored, box)
    shown = to_srgb(_colors(image, stored), image.info)
    if mask is not None:
        shown = _on_white(shown, mask, may_be_blank)
    method = ORIENTATIONS.get(_orientation(image))
    return shown if method is None else shown.transpose(method)


def convert_frame(image: Image.Image) -> Image.Image:
    """Return the current frame of an opened animation as 8-bit sRGB on white; a frame may be blank."""
    if image.tell() == 0:
        return _convert(image, may_be_blank=True)
    shown = image.convert("RGBA")  # Pillow composes it with the frames before
    mask = np.asarray(shown.getchannel("A"))
    colors = to_srgb(shown.convert("RGB"), image.info)
    return colors if mask.min() == 255 else _on_white(colors, mask, may_be_blank=True)


def _colors(image: Image.Image, stored: str) -> Image.Image:
    """Return the image as L, RGB, CMYK or LAB, without transparency."""
    if is_deep_gray(image):
        return reduce_gray(image)
    check_reduced(image, stored)
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("LA" if image.mode == "La" else image.mode).convert("L")
    return image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA", "RGBa") else image.convert("RGB")


def _mask(image: Image.Image, stored: str, box: tuple[int, int, int, int] | None) -> Mask | None:
    """Return the opacity of all pixels; None if all are opaque."""
    if image.mode in ("1", "L", "RGB", "I;16") and "transparency" in image.info:
        mask = _key_mask(image, stored)
    elif image.has_transparency_data:
        mask = np.asarray(image.convert("RGBA").getchannel("A"))
        if image.format == "BMP" and not mask.any():  # written by programs that do not use the fourth channel
            return None
    elif box is None or box == (0, 0, *image.size):
        return None
    else:
        mask = np.full((image.height, image.width), 255, np.uint8)
    if box is not None:  # the first frame of a GIF covers only this part of the canvas
        left, top, right, bottom = box
        mask = np.pad(mask[top:bottom, left:right], ((top, image.height - bottom), (left, image.width - right)))
    return None if mask.min() == 255 else mask


def _key_mask(image: Image.Image, stored: str) -> Mask:
    """Return 0 for pixels of the transparent color of the file, else 255."""
    key = np.array(image.info["transparency"])
    if image.mode == "RGB" and ";16" in stored:
        raise DatasetError("has 16-bit channels and a transparent color", "save it with an alpha channel")
    if scale := GRAY_SCALES.get(stored):  # Pillow scales samples of fewer bits, but not this color
        key = key * scale
    same = np.asarray(image) == (key > 0 if image.mode == "1" else key)
    return np.where(same.all(axis=-1) if image.mode == "RGB" else same, 0, 255).astype(np.uint8)


def _on_white(image: Image.Image, mask: Mask, may_be_blank: bool) -> Image.Image:
    opacity = mask[..., None].astype(np.uint16)
    shown = ((np.asarray(image) * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    if not may_be_blank and shown.min() == 255 and not (_is_uniform(np.asarray(image)) and _is_uniform(mask)):
        raise DatasetError("is white or transparent everywhere: on a white background it is blank", BLANK_HINT)
    return Image.fromarray(shown)


def _is_uniform(pixels: NDArray[np.uint8]) -> bool:
    return bool((pixels == pixels[0, 0]).all())


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # viewers ignore damaged EXIF data, too
        return 1
    return found if isinstance(found, int) else 1
