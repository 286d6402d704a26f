"""Convert the color spaces of image files to sRGB."""

import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from mcpmq.errors import DatasetError

SRGB_GAMMA, GAMMA_TOLERANCE = 1 / 2.2, 0.01  # as in gAMA chunks
SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue: x and y of each
CHROMATICITY_TOLERANCE = 0.01
MAX_SRGB_DEVIATION = 2  # levels of 255; a profile within it is another version of sRGB, and pixels stay unchanged
LATTICE_STEPS = 17  # per channel, of the colors that a profile is compared on
PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
SRGB_HINT = "convert the image to sRGB in an image editor, and save it as PNG or JPEG"
# Code points of ITU-T H.273 in PNG (cICP) and AVIF (nclx): 2 is unspecified, the others are close to sRGB.
CODED_COLOR = re.compile(rb"\0\0\0\x04cICP(?P<png>..)|colrnclx\0(?P<primaries>.)\0(?P<transfer>.)", re.DOTALL)
SRGB_PRIMARIES, SRGB_TRANSFERS = {1, 2, 5, 6}, {1, 2, 6, 13, 14, 15}


def check_color_space(header: bytes) -> None:
    """Check color spaces that Pillow does not read, in the first bytes of a file.

    Raises:
        DatasetError: the file declares high dynamic range, or primaries other than those of sRGB.
    """
    if found := CODED_COLOR.search(header):
        primaries, transfer = found["png"] or found["primaries"] + found["transfer"]
        if primaries not in SRGB_PRIMARIES or transfer not in SRGB_TRANSFERS:
            raise DatasetError(
                f"has color primaries {primaries} and transfer characteristics {transfer} of ITU-T H.273, not sRGB",
                SRGB_HINT,
            )


def to_srgb(image: Image.Image, info: Mapping[Any, Any]) -> Image.Image:
    """Convert an image without transparency to 8-bit sRGB, with the profile or the gamma in the `info` of its file.

    Images without a profile are sRGB; CMYK without a profile is converted by (1 - ink)(1 - black), as in browsers.

    Raises:
        DatasetError: the profile or the primaries cannot be converted.
    """
    if image.mode == "LAB":
        return _transformed(image, _transform(ImageCms.createProfile("LAB"), "LAB"))
    if profile := info.get("icc_profile"):
        return _apply_profile(image, profile)
    rgb = image.convert("RGB")
    if "srgb" in info or not (gamma := info.get("gamma")):
        return rgb
    return _apply_gamma(rgb, gamma, info.get("chromaticity") if image.mode != "L" else None)


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise DatasetError(f"has a damaged color profile: {error}", "remove the profile, or save it as sRGB") from error
    if image.mode == "L" and space == "RGB":
        image = image.convert("RGB")  # as browsers do
    if image.mode != PROFILE_MODES.get(space):
        raise DatasetError(f"has a color profile for {space}, but {image.mode} samples", SRGB_HINT)
    transform = _transform(source, image.mode)
    if image.mode != "CMYK" and _is_identity(transform, image.mode):
        return image.convert("RGB")
    if image.mode == "L":  # a table of all levels is faster
        levels = np.asarray(_transformed(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), transform))[0]
        return image.convert("RGB").point(levels.T.ravel().tolist())
    return _transformed(image, transform)


def _transform(source: Any, mode: str) -> ImageCms.ImageCmsTransform:
    """Return a transform to sRGB; the tables of the faster one would be inexact for gray and Lab."""
    flags = ImageCms.Flags.NOOPTIMIZE if mode in ("L", "LAB") else ImageCms.Flags.NONE
    target = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags)


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.linspace(0, 255, LATTICE_STEPS).round().astype(np.uint8)
    axes = np.meshgrid(*[steps] * len(mode), indexing="ij")
    lattice = Image.fromarray(np.stack(axes, axis=-1).reshape(LATTICE_STEPS, -1, len(mode)).squeeze())
    deviation = np.asarray(_transformed(lattice, transform), np.int16) - np.asarray(lattice.convert("RGB"), np.int16)
    return int(np.abs(deviation).max()) <= MAX_SRGB_DEVIATION


def _apply_gamma(image: Image.Image, gamma: float, chromaticities: tuple[float, ...] | None) -> Image.Image:
    """Convert samples that are light to the power `gamma` (the gAMA chunk of PNG) to sRGB.

    Source: https://www.w3.org/TR/png-3/#11gAMA
    """
    if chromaticities and np.abs(np.subtract(chromaticities, SRGB_CHROMATICITIES)).max() > CHROMATICITY_TOLERANCE:
        raise DatasetError("has color primaries other than those of sRGB", SRGB_HINT)
    if abs(gamma - SRGB_GAMMA) < GAMMA_TOLERANCE:
        return image
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return image.point(np.rint(255 * encoded).astype(int).tolist() * 3)
