"""Reading of image files, compared with a conversion of one pixel at a time from the written bits."""

import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mcpmq.errors import DatasetError
from mcpmq.system import image_file
from mcpmq.system.image_file import read_image
from tests.image_tools import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, write_png, write_tiff

WIDTH, HEIGHT = 9, 7
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGBA: (8, 16)}
ALL_LAYOUTS = [(color, depth) for color, depths in DEPTHS.items() for depth in depths]


def _samples(color: int, depth: int) -> NDArray[np.int64]:
    return np.random.default_rng(depth).integers(0, 2**depth, (HEIGHT, WIDTH, CHANNELS[color]))


def _pixels(file: Path) -> NDArray[np.int64]:
    image = read_image(file, "sample `a`")
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def _on_white(channels: list[Fraction], opacity: Fraction) -> list[int]:
    """Return RGB of a pixel with channels and opacity from 0 to 1."""
    color = channels * 3 if len(channels) == 1 else channels
    return [round(255 * (channel * opacity + 1 - opacity)) for channel in color]


def _expected(samples: NDArray[np.int64], to_pixel: Callable[[list[int]], list[int]]) -> NDArray[np.int64]:
    return np.array([[to_pixel(pixel.tolist()) for pixel in row] for row in samples])


@pytest.mark.parametrize(("color", "depth"), [one for one in ALL_LAYOUTS if one[0] != PALETTE])
def test_samples_of_png_are_scaled_by_their_range(color: int, depth: int, tmp_path: Path) -> None:
    """Gray and color of 1 to 16 bits, with and without opacity, become 8 bits on white."""
    samples, has_alpha = _samples(color, depth), color in (GRAY_ALPHA, RGBA)

    def to_pixel(values: list[int]) -> list[int]:
        scaled = [Fraction(value, 2**depth - 1) for value in values]
        return _on_white(scaled[:-1], scaled[-1]) if has_alpha else _on_white(scaled, Fraction(1))

    found = _pixels(write_png(tmp_path / "a.png", samples, depth, color))

    # Pillow truncates 16-bit channels of color, and of gray with opacity, before this reader receives them.
    tolerance = 0 if depth < 16 or color == GRAY else 2
    np.testing.assert_allclose(found, _expected(samples, to_pixel), rtol=0, atol=tolerance)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_png_becomes_white(depth: int, tmp_path: Path) -> None:
    """The value in tRNS has as many bits as the samples."""
    samples, key = _samples(GRAY, depth), 2**depth // 2
    samples[2, 3] = key
    chunk = (b"tRNS", key.to_bytes(2, "big"))

    found = _pixels(write_png(tmp_path / "a.png", samples, depth, GRAY, [chunk]))

    maximum = 2**depth - 1
    expected = _expected(samples, lambda pixel: [255 if pixel[0] == key else round(Fraction(255 * pixel[0], maximum))])
    assert found.tolist() == np.broadcast_to(expected, (HEIGHT, WIDTH, 3)).tolist()


def test_the_transparent_color_of_png_becomes_white(tmp_path: Path) -> None:
    """Only pixels that are equal in all channels are transparent."""
    samples = _samples(RGB, 8)
    samples[1, 1], samples[1, 2] = (10, 20, 30), (10, 20, 31)

    found = _pixels(write_png(tmp_path / "a.png", samples, 8, RGB, [(b"tRNS", bytes([0, 10, 0, 20, 0, 30]))]))

    samples[1, 1] = 255
    assert found.tolist() == samples.tolist()


def test_the_transparent_color_of_16_bit_png_is_rejected(tmp_path: Path) -> None:
    """Pillow drops the low bits that the comparison needs."""
    file = write_png(tmp_path / "a.png", _samples(RGB, 16), 16, RGB, [(b"tRNS", bytes(6))])

    with pytest.raises(DatasetError, match="16-bit channels and a transparent color"):
        read_image(file, "sample `a`")


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("opacities", [[0], [255, 128, 3, 0]])
def test_palettes_of_png_have_opacities(depth: int, opacities: list[int], tmp_path: Path) -> None:
    """Palette entries without an opacity are opaque."""
    samples, colors = _samples(PALETTE, depth), np.random.default_rng(1).integers(0, 256, (2**depth, 3))
    kept = opacities[: 2**depth]
    chunks = [(b"PLTE", colors.astype(np.uint8).tobytes()), (b"tRNS", bytes(kept))]

    found = _pixels(write_png(tmp_path / "a.png", samples, depth, PALETTE, chunks))

    def to_pixel(pixel: list[int]) -> list[int]:
        opacity = kept[pixel[0]] if pixel[0] < len(kept) else 255
        return _on_white([Fraction(int(one), 255) for one in colors[pixel[0]]], Fraction(opacity, 255))

    assert found.tolist() == _expected(samples, to_pixel).tolist()


# Row and column of the stored image for a pixel of the shown image, of stored [height, width]; EXIF 2.32, tag 274.
SHOWN = {
    1: lambda y, x, height, width: (y, x),
    2: lambda y, x, height, width: (y, width - 1 - x),
    3: lambda y, x, height, width: (height - 1 - y, width - 1 - x),
    4: lambda y, x, height, width: (height - 1 - y, x),
    5: lambda y, x, height, width: (x, y),
    6: lambda y, x, height, width: (height - 1 - x, y),
    7: lambda y, x, height, width: (height - 1 - x, width - 1 - y),
    8: lambda y, x, height, width: (x, width - 1 - y),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "options", [("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {}), ("b.tif", {"compression": "tiff_lzw"})]
)
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_orientations_are_applied(
    orientation: int, options: tuple[str, dict[str, Any]], mode: str, tmp_path: Path
) -> None:
    """All eight orientations of EXIF, in files that store all pixels exactly."""
    if mode == "I;16" and options[0] == "a.webp":
        return
    stored = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    if mode == "I;16":
        stored = np.broadcast_to(stored[..., :1], stored.shape)
        image = Image.fromarray(stored[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / options[0], exif=exif, **options[1])

    found = _pixels(tmp_path / options[0])

    assert found.shape == ((8, 5, 3) if orientation > 4 else (5, 8, 3))
    for y, x in np.ndindex(found.shape[:2]):
        assert found[y, x].tolist() == stored[SHOWN[orientation](y, x, 5, 8)].tolist(), (y, x)


def test_the_orientation_of_jpeg_is_applied(tmp_path: Path) -> None:
    """A camera held upright stores a landscape image with orientation 6: its left edge is shown at the top."""
    stored = np.zeros((16, 48, 3), np.uint8)
    stored[:, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(stored).save(tmp_path / "a.jpg", quality=95, exif=exif)

    found = _pixels(tmp_path / "a.jpg")

    assert found.shape == (48, 16, 3)
    assert found[4, 8, 0] > 240
    assert found[30, 8, 0] < 16


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\xff\xff"])
def test_damaged_exif_data_is_ignored(exif: bytes, tmp_path: Path) -> None:
    """Viewers show the image as it is stored."""
    Image.new("RGB", (30, 20), (10, 200, 30)).save(tmp_path / "a.jpg", exif=exif)

    assert _pixels(tmp_path / "a.jpg").shape == (20, 30, 3)


def test_16_bit_orders_of_bytes_of_tiff(tmp_path: Path) -> None:
    """Little-endian, big-endian, 12-bit, and white-is-zero values are scaled by their range."""
    values = np.random.default_rng(0).integers(0, 65536, (5, 4))
    bits12 = "".join(f"{value >> 4:012b}" for value in values.ravel())
    packed = bytes(int(bits12[start : start + 8], 2) for start in range(0, len(bits12), 8))
    expected = np.array([[round(Fraction(255 * int(value), 65535)) for value in row] for row in values])
    expected12 = np.array([[round(Fraction(255 * (int(value) >> 4), 4095)) for value in row] for row in values])
    little, big = values.astype("<u2").tobytes(), values.astype(">u2").tobytes()

    for name, file, levels in (
        ("little-endian", write_tiff(tmp_path / "a.tif", little, (4, 5), [16], 1), expected),
        ("big-endian", write_tiff(tmp_path / "b.tif", big, (4, 5), [16], 1, ">"), expected),
        ("white is zero", write_tiff(tmp_path / "c.tif", little, (4, 5), [16], 0), 255 - expected),
        ("12 bits", write_tiff(tmp_path / "d.tif", packed, (4, 5), [12], 1), expected12),
    ):
        assert _pixels(file)[..., 0].tolist() == levels.tolist(), name


def test_premultiplied_opacity_of_tiff(tmp_path: Path) -> None:
    """Colors that are multiplied by the opacity are divided by it first."""
    pixels = bytes([100, 50, 0, 128, 0, 0, 0, 0, 7, 8, 9, 255])

    found = _pixels(write_tiff(tmp_path / "a.tif", pixels, (3, 1), [8] * 4, 2, more={338: 1}))

    np.testing.assert_allclose(found[0], [[227, 177, 127], [255, 255, 255], [7, 8, 9]], rtol=0, atol=1)


def test_drawings_on_transparency_are_kept(tmp_path: Path) -> None:
    """Black on transparent black becomes black on white."""
    drawing = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (2, 2, 9, 6))
    expected = np.full((10, 20, 3), 255)
    expected[2:6, 2:9] = 0
    drawing.save(tmp_path / "a.png")
    drawing.convert("LA").save(tmp_path / "b.png")
    drawing.quantize(4).save(tmp_path / "c.png")
    drawing.save(tmp_path / "d.webp", lossless=True)
    drawing.save(tmp_path / "e.gif")
    drawing.save(tmp_path / "f.tif")

    for name in ("a.png", "b.png", "c.png", "d.webp", "e.gif", "f.tif"):
        assert _pixels(tmp_path / name).tolist() == expected.tolist(), name


def test_content_that_white_would_hide_is_rejected(tmp_path: Path) -> None:
    """White on transparency, and colors under full transparency, are errors; an empty image is blank."""
    drawing = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    drawing.paste((255, 255, 255, 255), (2, 2, 9, 6))
    drawing.save(tmp_path / "white.png")
    hidden = Image.effect_noise((20, 10), 50).convert("RGBA")
    hidden.putalpha(0)
    hidden.save(tmp_path / "hidden.png")
    Image.new("RGBA", (20, 10)).save(tmp_path / "empty.png")

    for name in ("white.png", "hidden.png"):
        with pytest.raises(DatasetError, match="blank"):
            read_image(tmp_path / name, "sample `a`")
    assert _pixels(tmp_path / "empty.png").min() == 255


def test_an_unused_fourth_channel_of_bmp_is_ignored(tmp_path: Path) -> None:
    """Programs write 32-bit BMP files with zeros in the opacity."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    for opacity, name in ((0, "a.bmp"), (255, "b.bmp")):
        noise[..., 3] = opacity
        masks = struct.pack("<4I", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)
        header = struct.pack("<IiiHHIIiiII", 108, 5, -6, 1, 32, 3, noise.size, 0, 0, 0, 0) + masks
        file = struct.pack("<2sIHHI", b"BM", 122 + noise.size, 0, 0, 122) + header.ljust(108, b"\0") + noise.tobytes()
        (tmp_path / name).write_bytes(file)

        assert _pixels(tmp_path / name).tolist() == noise[..., :3].tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.gif", {}), ("a.png", {}), ("a.webp", {"lossless": True}), ("a.tif", {}), ("a.mpo", {"quality": 95})],
)
def test_the_first_frame_is_returned(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Animations, pages, and the images of a multi-image file."""
    frames = [Image.new("RGB", (30, 20), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)

    np.testing.assert_allclose(_pixels(tmp_path / name)[5, 5], (200, 0, 0), atol=2)


def test_the_canvas_around_the_first_frame_of_a_gif_is_white(tmp_path: Path) -> None:
    """A first frame smaller than the canvas leaves the other pixels transparent."""
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.save(tmp_path / "a.gif")
    content = bytearray((tmp_path / "a.gif").read_bytes())
    content[6:10] = (6).to_bytes(2, "little") + (5).to_bytes(2, "little")
    (tmp_path / "a.gif").write_bytes(content)

    found = _pixels(tmp_path / "a.gif")

    assert found.shape == (5, 6, 3)
    assert found[:3, :4].tolist() == np.broadcast_to((200, 10, 20), (3, 4, 3)).tolist()
    assert found[3:].min() == found[:, 4:].min() == 255


def _unreadable_files(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield files, a part of their error, and a part of its hint."""
    image = Image.effect_noise((60, 40), 50).convert("RGB")
    image.save(folder / "eps.png", "EPS")
    yield folder / "eps.png", "not of the formats JPEG, PNG", "PNG or JPEG"
    image.save(folder / "a.pdf")
    yield folder / "a.pdf", "not of the formats", "PNG or JPEG"
    (folder / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60))
    yield folder / "photo.jpg", "not of the formats", "convert the HEIC image"
    (folder / "mif1.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(60))
    yield folder / "mif1.heic", "cannot be read", "convert the HEIC image"
    image.save(folder / "whole.png")
    (folder / "half.png").write_bytes((folder / "whole.png").read_bytes()[:1000])
    yield folder / "half.png", "cannot be read", "PNG or JPEG"
    yield folder, "not a regular file", "path of an image"
    Image.new("RGB", (2, 402)).save(folder / "narrow.png")
    yield folder / "narrow.png", "2x402 pixels, an aspect ratio of more than 200", "crop"
    yield write_tiff(folder / "thumb.tif", bytes(64), (8, 8), [8], 1, more={254: 1}), "thumbnail", "PNG or JPEG"
    yield write_tiff(folder / "signed.tif", bytes(range(64)), (8, 8), [8], 1, more={339: 2}), "signed 8-bit", "range"


def test_other_files_are_rejected_with_a_hint(tmp_path: Path) -> None:
    """The content of a file counts, not its name; every error names the sample and the file."""
    for file, message, hint in _unreadable_files(tmp_path):
        with pytest.raises(DatasetError, match=message) as caught:
            read_image(file, "sample `a`")
        assert f"sample `a`: the image `{file.name}`" in str(caught.value)
        assert hint in caught.value.hint


def _whole_files(folder: Path) -> Iterator[bytes]:
    noise = Image.effect_noise((30, 20), 50)
    for name, mode in (("a.jpg", "RGB"), ("b.jpg", "CMYK"), ("a.png", "RGBA"), ("a.gif", "L"), ("a.bmp", "RGB")):
        noise.convert(mode).save(folder / name)
        yield (folder / name).read_bytes()
    for name, compression in (("a.tif", "raw"), ("b.tif", "tiff_lzw"), ("c.tif", "jpeg")):
        noise.convert("RGB").save(folder / name, compression=compression)
        yield (folder / name).read_bytes()
    noise.convert("RGBA").save(folder / "a.webp")
    yield (folder / "a.webp").read_bytes()


def test_damaged_files_are_images_or_errors(tmp_path: Path) -> None:
    """No change of bytes raises another exception than DatasetError, and every error has a hint."""
    generator, hints = np.random.default_rng(0), list[str]()
    for content in _whole_files(tmp_path):
        for _ in range(60):
            damaged = bytearray(content)
            for position in generator.integers(0, min(len(content), 600), generator.integers(1, 8)):
                damaged[position] = generator.choice([0, 1, 127, 128, 255])
            (tmp_path / "damaged").write_bytes(damaged[: generator.integers(1, 2 * len(content))])
            try:
                assert read_image(tmp_path / "damaged", "sample `a`").mode == "RGB"
            except DatasetError as error:
                hints.append(error.hint)
    assert 100 < len(hints) < 540
    assert all(hints)


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    """The error is immediate; an opened FIFO would wait for a writer."""
    os.mkfifo(tmp_path / "a.png")

    with pytest.raises(DatasetError, match="not a regular file"):
        read_image(tmp_path / "a.png", "sample `a`")


def test_limits_apply_to_the_header_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many pixels and too many bytes are errors before anything is decoded."""
    assert image_file.MAX_IMAGE_PIXELS == 64_000_000
    assert image_file.MAX_IMAGE_NBYTES == 536_870_912
    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.int64), 8, RGB)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (8001).to_bytes(4, "big") * 2
    (tmp_path / "large.png").write_bytes(content)

    with pytest.raises(DatasetError, match="cannot be read|64,016,001 pixels, more than 64,000,000"):
        read_image(tmp_path / "large.png", "sample `a`")
    monkeypatch.setattr(image_file, "MAX_IMAGE_NBYTES", 50)
    with pytest.raises(DatasetError, match="bytes, more than 50"):
        read_image(tmp_path / "a.png", "sample `a`")


def test_only_the_reader_opens_images() -> None:
    """No other module calls `Image.open`, so all pixels of a sample come from one conversion."""
    package = Path(image_file.__file__).parent.parent

    assert [path.name for path in package.rglob("*.py") if "Image.open(" in path.read_text()] == ["image_file.py"]
