"""Conversion to sRGB, compared with the formulas of the color spaces."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from mcpmq.errors import DatasetError
from mcpmq.system.image_color import check_color_space
from mcpmq.system.image_file import read_image
from tests.image_tools import GRAY, RGB, cmyk_profile, gray_profile, matrix_profile, write_png, write_tiff

ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))  # for D50
# From XYZ for D50 to linear sRGB, with the Bradford adaptation; http://www.brucelindbloom.com
XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
COLORS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def _encode_srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _srgb_of_lab(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB of CIE Lab for the white point D50; https://en.wikipedia.org/wiki/CIELAB_color_space"""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    return _encode_srgb(xyz @ XYZ_TO_SRGB.T)


def _pixels(file: Path) -> NDArray[np.float64]:
    return np.asarray(read_image(file, "sample `a`")).astype(np.float64)


def _profile_bytes(name: Any) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_a_color_profile_is_converted(name: str, tmp_path: Path) -> None:
    """Colors of Adobe RGB become those of sRGB."""
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(COLORS).save(tmp_path / name, icc_profile=matrix_profile(ADOBE_RGB, 563 / 256), **options)

    expected = _encode_srgb((COLORS / 255) ** (563 / 256) @ np.array(ADOBE_RGB) @ XYZ_TO_SRGB.T)

    np.testing.assert_allclose(_pixels(tmp_path / name), expected, rtol=0, atol=1.5)


def test_opacity_is_applied_after_the_profile(tmp_path: Path) -> None:
    """White stays white, and a half transparent color is mixed with it in sRGB."""
    image = Image.new("RGBA", (2, 1), (200, 30, 40, 128))
    image.putpixel((1, 0), (200, 30, 40, 255))
    image.save(tmp_path / "a.png", icc_profile=matrix_profile(ADOBE_RGB, 563 / 256))

    mixed, opaque = _pixels(tmp_path / "a.png")[0]

    np.testing.assert_allclose(mixed, (opaque * 128 + 255 * 127) / 255, rtol=0, atol=0.5)
    assert np.abs(opaque - (200, 30, 40)).max() > 10


def test_pixels_with_a_profile_of_srgb_do_not_change(tmp_path: Path) -> None:
    """The rounding of a conversion from sRGB to sRGB is left out; also for gray samples."""
    Image.fromarray(COLORS).save(tmp_path / "a.png", icc_profile=_profile_bytes("sRGB"))
    Image.fromarray(COLORS[..., 0]).save(tmp_path / "b.png", icc_profile=_profile_bytes("sRGB"))

    assert _pixels(tmp_path / "a.png").tolist() == COLORS.tolist()
    assert _pixels(tmp_path / "b.png")[..., 1].tolist() == COLORS[..., 0].tolist()


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_a_gray_profile_is_converted(gamma: float, tmp_path: Path) -> None:
    """Linear light becomes sRGB."""
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(4, axis=0)
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=gray_profile(gamma))

    found = _pixels(tmp_path / "a.png")

    np.testing.assert_allclose(found[0, :, 1], _encode_srgb((ramp[0] / 255) ** gamma), rtol=0, atol=1.5)


@pytest.mark.parametrize(
    ("profile", "mode", "message"),
    [
        (b"no profile", "RGB", "damaged color profile"),
        (matrix_profile(ADOBE_RGB, 2)[:150], "RGB", "damaged color profile"),
        (gray_profile(2.0), "RGB", "color profile for GRAY, but RGB"),
        (matrix_profile(ADOBE_RGB, 2), "CMYK", "color profile for RGB, but CMYK"),
    ],
)
def test_profiles_that_do_not_fit_are_rejected(profile: bytes, mode: str, message: str, tmp_path: Path) -> None:
    """The error names the color spaces, and the hint is to save as sRGB."""
    Image.new(mode, (8, 8), 70).save(tmp_path / "a.tif", icc_profile=profile)

    with pytest.raises(DatasetError, match=message) as caught:
        read_image(tmp_path / "a.tif", "sample `a`")
    assert "sRGB" in caught.value.hint


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_cmyk_without_a_profile(name: str, tmp_path: Path) -> None:
    """Red, green and blue are (1 - ink)(1 - black)."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 128, 255, 0], [10, 20, 30, 100], [0, 0, 0, 255]]], np.uint8)
    inks = inks.repeat(16, axis=0).repeat(16, axis=1)
    Image.fromarray(inks, "CMYK").save(tmp_path / name, quality=100)

    expected = 255 * (1 - inks[..., :3] / 255) * (1 - inks[..., 3:] / 255)

    np.testing.assert_allclose(_pixels(tmp_path / name), expected, rtol=0, atol=1 if name == "a.tif" else 6)


def test_a_profile_of_cmyk_is_converted(tmp_path: Path) -> None:
    """Each combination of no and full ink becomes the color that the profile has for it."""
    generator = np.random.default_rng(0)
    corners = np.column_stack([generator.integers(20, 101, 16), generator.integers(-25, 26, (16, 2))])
    corners[0], corners[1], corners[15] = (100, 0, 0), (0, 0, 0), (0, 0, 0)  # paper, black ink, all inks
    inks = [[255 * (number >> shift & 1) for shift in (3, 2, 1, 0)] for number in range(16)]
    file = tmp_path / "a.tif"
    Image.fromarray(np.array([inks], np.uint8), "CMYK").save(file, icc_profile=cmyk_profile(corners.tolist()))

    np.testing.assert_allclose(_pixels(file)[0], _srgb_of_lab(corners.astype(np.float64)), rtol=0, atol=2)


def test_lab_is_converted(tmp_path: Path) -> None:
    """Lightness and two axes of color, for the white point D50."""
    lab = np.array([[[50, 0, 0], [100, 0, 0], [53, 60, 40], [60, -40, 30], [35, 20, -50], [0, 0, 0]]], np.float64)
    stored = np.concatenate([np.rint(lab[..., :1] * 2.55), lab[..., 1:]], axis=-1).astype(np.int64) & 255
    file = write_tiff(tmp_path / "a.tif", stored.astype(np.uint8).tobytes(), (6, 1), [8, 8, 8], 8)

    np.testing.assert_allclose(_pixels(file), _srgb_of_lab(lab), rtol=0, atol=1.5)


def test_the_gamma_of_png_is_applied(tmp_path: Path) -> None:
    """Linear samples become sRGB; the usual gamma and a declaration of sRGB leave them unchanged."""
    samples, linear, usual = COLORS.astype(np.int64), struct.pack(">I", 100_000), struct.pack(">I", 45455)

    found = _pixels(write_png(tmp_path / "a.png", samples, 8, RGB, [(b"gAMA", linear)]))
    gray = _pixels(write_png(tmp_path / "d.png", samples[..., :1], 8, GRAY, [(b"gAMA", linear)]))

    np.testing.assert_allclose(found, _encode_srgb(COLORS / 255), rtol=0, atol=0.51)
    np.testing.assert_allclose(gray[..., 2], found[..., 0])
    for name, chunks in {"b.png": [(b"gAMA", usual)], "c.png": [(b"sRGB", b"\0"), (b"gAMA", linear)]}.items():
        assert _pixels(write_png(tmp_path / name, samples, 8, RGB, chunks)).tolist() == COLORS.tolist()


def test_other_primaries_of_png_are_rejected(tmp_path: Path) -> None:
    """Chromaticities other than those of sRGB need a conversion; those of sRGB are accepted."""
    gamma, srgb = (b"gAMA", struct.pack(">I", 45455)), (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    wide = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    samples = COLORS.astype(np.int64)

    with pytest.raises(DatasetError, match="primaries other than those of sRGB"):
        _pixels(write_png(tmp_path / "a.png", samples, 8, RGB, [gamma, (b"cHRM", struct.pack(">8I", *wide))]))
    accepted = write_png(tmp_path / "b.png", samples, 8, RGB, [gamma, (b"cHRM", struct.pack(">8I", *srgb))])
    assert _pixels(accepted).tolist() == COLORS.tolist()


def test_high_dynamic_range_is_rejected(tmp_path: Path) -> None:
    """PNG and AVIF with the primaries of BT.2020 and the transfer function PQ; those of sRGB are accepted."""
    png = write_png(tmp_path / "a.png", COLORS.astype(np.int64), 8, RGB, [(b"cICP", bytes([9, 16, 0, 1]))])

    with pytest.raises(DatasetError, match="primaries 9 and transfer characteristics 16"):
        read_image(png, "sample `a`")
    with pytest.raises(DatasetError, match="primaries 9 and transfer characteristics 18"):
        check_color_space(b"\0\0\0\x13colrnclx\0\x09\0\x12\0\x09\x80")
    check_color_space(b"\0\0\0\x13colrnclx\0\x01\0\x0d\0\x06\x80")
    srgb = write_png(tmp_path / "b.png", COLORS.astype(np.int64), 8, RGB, [(b"cICP", bytes([1, 13, 0, 1]))])
    assert _pixels(srgb).tolist() == COLORS.tolist()
