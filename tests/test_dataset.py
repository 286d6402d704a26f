"""A set is read whole and checked, or refused with the line that is wrong."""

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mcpmq.dataset import CalibrationSet
from mcpmq.errors import CalibrationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image and no manifest yet."""
    Image.new("RGB", (28, 14), "red").save(tmp_path / "red.png")
    return tmp_path


def _line(**changes: Any) -> str:
    line = {"id": "1", "image": "red.png", "prompt": "What colour?", "answer": "Red."} | changes
    return json.dumps({key: value for key, value in line.items() if value is not None})


def _write(folder: Path, *lines: str) -> Path:
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def test_samples_come_in_the_order_of_the_lines(folder: Path) -> None:
    """Order, image, prompt, answer and tags are kept; blank lines are nothing."""
    opened = CalibrationSet.open(_write(folder, _line(id="b", tags=["x"]), "", _line(id="a", image=None)))

    assert [sample.id for sample in opened] == ["b", "a"]
    assert opened.samples[0].image == folder / "red.png"
    assert opened.samples[0].tags == ("x",)
    assert opened.samples[1].image is None


def test_the_hash_is_of_what_the_model_sees(folder: Path) -> None:
    """Another pixel or another answer is another set; where it lies does not matter."""
    first = CalibrationSet.open(_write(folder, _line())).sha256
    assert CalibrationSet.open(_write(folder, _line(answer="Blue."))).sha256 != first

    Image.new("RGB", (28, 14), "blue").save(folder / "red.png")

    assert CalibrationSet.open(_write(folder, _line())).sha256 != first


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1"),
        ("[1]", "line 1"),
        (_line(prompt=None), "prompt"),
        (_line(answer=""), "answer"),
        (_line(id=7), "id"),
        (_line(image="missing.png"), "no image `missing.png`"),
        (_line(image="../red.png"), "outside"),
        (_line(image="/etc/passwd"), "outside"),
        (_line(image_sha256="0" * 64), "not the one that was hashed"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "line 1"),
    ],
)
def test_a_broken_line_is_named(folder: Path, line: str, said: str) -> None:
    """The error names the line and what is wrong with it."""
    with pytest.raises(CalibrationError, match=said):
        CalibrationSet.open(_write(folder, line))


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A symbolic link does not smuggle in another file."""
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (1, 1)).save(outside)
    (folder / "link.png").symlink_to(outside)

    with pytest.raises(CalibrationError, match="outside"):
        CalibrationSet.open(_write(folder, _line(image="link.png")))


def test_the_right_hash_of_an_image_is_accepted(folder: Path) -> None:
    """A line may pin its image."""
    digest = hashlib.sha256((folder / "red.png").read_bytes()).hexdigest()

    assert len(CalibrationSet.open(_write(folder, _line(image_sha256=digest)))) == 1


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_image_is_named(folder: Path, content: bytes) -> None:
    """Bytes that are no image are refused before any work."""
    (folder / "red.png").write_bytes(content)

    with pytest.raises(CalibrationError, match=r"red\.png"):
        CalibrationSet.open(_write(folder, _line()))


def test_a_truncated_image_is_named(folder: Path) -> None:
    """A good header with half its pixels is a broken image."""
    whole = (folder / "red.png").read_bytes()
    (folder / "red.png").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(CalibrationError, match=r"red\.png"):
        CalibrationSet.open(_write(folder, _line()))


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_an_enormous_image_is_refused_from_its_header(folder: Path, side: int) -> None:
    """A header that promises too many pixels is enough to refuse."""
    bodies = {b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(bytes(1000))}
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in bodies.items()
    ]
    (folder / "red.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))

    with pytest.raises(CalibrationError, match="pixels|too large"):
        CalibrationSet.open(_write(folder, _line()))


def test_an_empty_set_is_refused(folder: Path) -> None:
    """A manifest without a line is no set."""
    with pytest.raises(CalibrationError, match="no sample"):
        CalibrationSet.open(_write(folder, "", ""))


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    """The hint says how to make one."""
    with pytest.raises(CalibrationError, match=r"manifest\.jsonl"):
        CalibrationSet.open(tmp_path)


def test_an_id_may_not_come_twice(folder: Path) -> None:
    """Losses are matched by id."""
    with pytest.raises(CalibrationError, match="twice"):
        CalibrationSet.open(_write(folder, _line(), _line()))


def test_every_fifth_sample_is_held_out(folder: Path) -> None:
    """The split is deterministic, disjoint and whole."""
    opened = CalibrationSet.open(_write(folder, *[_line(id=str(number)) for number in range(1, 12)]))

    kept, held_out = opened.split()

    assert [sample.id for sample in held_out] == ["5", "10"]
    assert {*kept} | {*held_out} == {*opened}
    assert len(kept) + len(held_out) == len(opened)


def test_too_few_samples_hold_nothing_out(folder: Path) -> None:
    """Four samples have no fifth."""
    with pytest.raises(CalibrationError, match="4 samples are too few"):
        CalibrationSet.open(_write(folder, *[_line(id=str(number)) for number in range(4)])).split()
