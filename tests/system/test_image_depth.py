"""Reduction of deep samples to 8 bits: ranges of integers and floats, and values that use little of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mcpmq.errors import DatasetError
from mcpmq.system.image_file import read_image
from tests.image_tools import GRAY, RGB, write_png, write_tiff

RAMP = np.linspace(0, 1, 12 * 70).reshape(70, 12)
EXPECTED = np.rint(255 * RAMP)


def _levels(file: Path) -> Any:
    found = np.asarray(read_image(file, "sample `a`"))
    assert (found == found[..., :1]).all()
    return found[..., 0].astype(np.int64)


def _saved(values: Any, file: Path) -> Path:
    Image.fromarray(values).save(file)
    return file


def test_a_ramp_stays_a_ramp(tmp_path: Path) -> None:
    """16-bit PNG, 16 and 32-bit TIFF with and without sign, float TIFF, and 16-bit PPM show the same ramp."""
    tags: dict[int, int] = {339: 1}
    unsigned, signed16 = np.rint(RAMP * (2**32 - 1)).astype("<u4"), np.rint(RAMP * 32767).astype("<i2")
    files = {
        "16-bit PNG": _saved(np.rint(RAMP * 65535).astype(np.uint16), tmp_path / "a.png"),
        "16-bit TIFF": _saved(np.rint(RAMP * 65535).astype(np.uint16), tmp_path / "a.tif"),
        "16-bit PPM": _saved(np.rint(RAMP * 65535).astype(np.uint16), tmp_path / "a.pgm"),
        "signed 32-bit TIFF": _saved(np.rint(RAMP * (2**31 - 1)).astype(np.int32), tmp_path / "b.tif"),
        "unsigned 32-bit TIFF": write_tiff(tmp_path / "c.tif", unsigned.tobytes(), (12, 70), [32], 1, more=tags),
        "signed 16-bit TIFF": write_tiff(tmp_path / "d.tif", signed16.tobytes(), (12, 70), [16], 1, more={339: 2}),
        "float TIFF": _saved(RAMP.astype(np.float32), tmp_path / "e.tif"),
        "inverted float TIFF": write_tiff(
            tmp_path / "f.tif", (1 - RAMP).astype("<f4").tobytes(), (12, 70), [32], 0, more={339: 3}
        ),
    }
    for name, file in files.items():
        np.testing.assert_allclose(_levels(file), EXPECTED, rtol=0, atol=1, err_msg=name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((RAMP * 65535).astype(np.int32), "uses only the values 0 to 65,535 of 0 to 2,147,483,647"),
        ((RAMP * 4095).astype(np.uint16), "uses only the values 0 to 4,095 of 0 to 65,535"),
        ((RAMP * 3000 + 32768).astype(np.uint16), "uses only the values 32,768 to 35,768"),
        ((RAMP * 255).astype(np.float32), "has values from 0 to 255, not 0 to 1"),
        ((RAMP - 0.5).astype(np.float32), "has values from -0.5 to 0.5"),
        ((RAMP / 20).astype(np.float32), "uses only the values 0 to 0.05 of 0 to 1"),
        ((RAMP * 100 - 50).astype(np.int32), "has values from -50 to 50"),
        (np.full((4, 4), np.nan, np.float32), "values from nan"),
        (np.full((4, 4), np.inf, np.float32), "values from inf"),
    ],
)
def test_content_outside_or_in_a_corner_of_the_range_is_rejected(values: Any, message: str, tmp_path: Path) -> None:
    """An image that would become one color is an error with its values, and the hint is to scale them."""
    with pytest.raises(DatasetError, match=message) as caught:
        read_image(_saved(values, tmp_path / "a.tif"), "sample `a`")

    assert "whole range" in caught.value.hint


def test_dark_16_bit_colors_are_rejected(tmp_path: Path) -> None:
    """12-bit values in 16-bit channels would be almost black; from a sixteenth of the range they are shown."""
    samples = np.rint(RAMP[..., None].repeat(3, axis=2) * 4095).astype(np.int64)

    with pytest.raises(DatasetError, match="uses only the values 0 to 4,095 of 0 to 65,535"):
        read_image(write_png(tmp_path / "a.png", samples, 16, RGB), "sample `a`")
    samples[0, 0] = 4096
    assert _levels(write_png(tmp_path / "b.png", samples, 16, RGB)).max() == 16


@pytest.mark.parametrize("value", [0, 200, 65535])
def test_one_deep_color_is_an_image(value: int, tmp_path: Path) -> None:
    """A constant image has no contrast to lose."""
    samples = np.full((3, 3, 1), value)

    assert _levels(write_png(tmp_path / "a.png", samples, 16, GRAY)).tolist() == [[round(value / 257)] * 3] * 3
