"""Frames of animated images and of containers."""

import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from mcpmq.errors import DatasetError
from mcpmq.system import video_file
from mcpmq.system.image_file import OversizedImage
from mcpmq.system.video_file import DECODER_HINT, read_frames, video_info
from tests.hostile_videos import (
    ANIMATIONS,
    CONTAINERS,
    FIELDS,
    NUMBERS,
    animation,
    container,
    growing,
    hostile_video,
    many_frames,
    with_number,
)

Frames = NDArray[np.uint8]
SECONDS = 20  # of processor time for a file


@pytest.fixture
def frames() -> Frames:
    """Five random frames."""
    return np.random.default_rng(3).integers(0, 256, (5, 20, 30, 3), np.uint8)


def _write(file: Path, frames: Frames, **options: Any) -> Path:
    first, *rest = map(Image.fromarray, frames)
    first.save(file, save_all=True, append_images=rest, **options)
    return file


@pytest.mark.parametrize("name", ["clip.webp", "clip.png"])
def test_frames_of_a_lossless_animation_are_exact(name: str, frames: Frames, tmp_path: Path) -> None:
    """Indices may be left out and repeated; the rate is that of the durations; bytes give the same frames."""
    file = _write(tmp_path / name, frames, duration=[100, 200, 300, 200, 200], lossless=True)

    info = video_info(file, "clip")
    found = [np.asarray(frame) for frame in read_frames(file, [0, 2, 2, 4], "clip")]

    assert (info.num_frames, info.fps, info.width, info.height) == (5, 5.0, 30, 20)
    np.testing.assert_array_equal(found, frames[[0, 2, 2, 4]])
    np.testing.assert_array_equal(next(iter(read_frames(file.read_bytes(), [3], "clip"))), frames[3])


def test_frames_of_a_gif_are_those_of_pillow(frames: Frames, tmp_path: Path) -> None:
    """Frames without a duration are shown for a tenth of a second."""
    file = _write(tmp_path / "clip.gif", frames)

    assert video_info(file, "clip").fps == 10
    with Image.open(file) as animation:
        expected = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]
    np.testing.assert_array_equal([np.asarray(frame) for frame in read_frames(file, range(5), "clip")], expected)


def test_transparent_frames_are_on_white_and_may_be_blank(tmp_path: Path) -> None:
    """The first frame is transparent everywhere, the second one half black."""
    blank, half = np.zeros((2, 8, 8, 4), np.uint8)
    half[:4, :, 3] = 255
    file = tmp_path / "clip.png"
    Image.fromarray(blank).save(file, save_all=True, append_images=[Image.fromarray(half)], duration=50)

    first, second = (np.asarray(frame) for frame in read_frames(file, [0, 1], "clip"))

    assert first.min() == 255
    assert (second[:4].max(), second[4:].min()) == (0, 255)


def test_the_default_image_of_an_apng_is_not_a_frame(frames: Frames, tmp_path: Path) -> None:
    """Viewers of still images show it."""
    file = _write(tmp_path / "clip.png", frames, default_image=True, duration=40)

    assert (video_info(file, "clip").num_frames, video_info(file, "clip").fps) == (4, 25.0)
    np.testing.assert_array_equal(next(iter(read_frames(file, [0], "clip"))), frames[1])


def test_a_container_is_decoded(frames: Frames, tmp_path: Path) -> None:
    """The number and the rate of frames are those that were encoded; the frames are similar."""
    av = pytest.importorskip("av")
    smooth = np.repeat(np.repeat(frames[:, :2, :2], 32, axis=1), 32, axis=2)
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        for pixels in smooth:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))

    info = video_info(tmp_path / "clip.mp4", "clip")
    found = np.stack([np.asarray(frame) for frame in read_frames(tmp_path / "clip.mp4", [0, 3], "clip")])

    assert (info.num_frames, info.fps, info.width, info.height) == (5, 5.0, 64, 64)
    assert np.abs(found[:, 8:24, 8:24].mean((1, 2)) - smooth[[0, 3], 8:24, 8:24].mean((1, 2))).max() < 12


def test_a_container_needs_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint has the package, and the command that extracts frames."""
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))

    with pytest.raises(DatasetError, match="clip is a container, which PyAV decodes, and `av` is not") as error:
        video_info(tmp_path / "clip.mp4", "clip")
    assert error.value.hint == DECODER_HINT
    assert "pip install 'mcpmq[video]'" in DECODER_HINT
    assert "ffmpeg" in DECODER_HINT


@pytest.mark.parametrize("content", [b"", b"#EXTM3U\nhttp://x/y.ts", b"GIF89a", b"\0\0\0\x18ftypmp42" + bytes(64)])
def test_other_files_are_rejected(content: bytes, tmp_path: Path) -> None:
    """Also playlists, which name other files, and files that end early."""
    (tmp_path / "clip").write_bytes(content)

    with pytest.raises(DatasetError, match="^clip "):
        video_info(tmp_path / "clip", "clip")
    with pytest.raises(DatasetError, match="^clip is not a regular file"):
        video_info(tmp_path, "clip")


@pytest.mark.parametrize(("name", "value"), [("MAX_IMAGE_PIXELS", 599), ("MAX_FRAMES", 4), ("MAX_VIDEO_NBYTES", 99)])
def test_sizes_are_limited(
    name: str, value: int, frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of a frame, frames, and bytes."""
    file = _write(tmp_path / "clip.png", frames)
    assert video_info(file, "clip").num_frames == 5
    monkeypatch.setattr(video_file, name, value)

    with pytest.raises(OversizedImage, match="more than"):
        video_info(file, "clip")


def test_frames_that_are_larger_than_those_before_are_limited() -> None:
    """The screen of a GIF file has one pixel, its second frame 81 million; nothing is decoded."""
    assert video_info(growing(1), "clip").num_frames == 2
    with pytest.raises(OversizedImage, match="frames of 81,000,000 pixels, more than 64,000,000"):
        video_info(growing(9_000), "clip")
    with pytest.raises(OversizedImage, match="frames of 81,000,000 pixels"):
        list(read_frames(growing(9_000), [0, 1], "clip"))


@pytest.mark.parametrize("name", CONTAINERS)
def test_frames_of_a_container_are_limited_by_their_own_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only by that of the header: the decoder refuses larger ones."""
    pytest.importorskip("av")
    content = container(name, side=256)
    for offset in (24, 26):
        content = with_number(content, (b"mp4v", offset, ">H"), 16)
    monkeypatch.setattr(video_file, "MAX_IMAGE_PIXELS", 10_000)

    with pytest.raises(DatasetError, match="^clip "):
        video_info(content, "clip")


def test_many_frames_are_limited() -> None:
    """Before one is decoded, in images; the limit may be smaller than that of sample sets."""
    assert video_info(many_frames(40), "clip").num_frames == 40
    with pytest.raises(OversizedImage, match="more than 39 frames"):
        video_info(many_frames(40), "clip", max_frames=39)
    with pytest.raises(OversizedImage, match="more than 200,000 frames"):
        video_info(many_frames(200_001), "clip")


def test_headers_have_any_number() -> None:
    """Each number of a header is replaced by several; the file is read or rejected, and names the video."""
    names = [(animation, one) for one in ANIMATIONS]
    if find_spec("av"):
        names += [(container, one) for one in CONTAINERS]
    changed = {with_number(make(name), field, number) for make, name in names for field in FIELDS for number in NUMBERS}
    assert len(changed) > 30
    for content in changed:
        _read(content)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_files_are_read_or_rejected(seed: int) -> None:
    """Files that are cut or changed; the error begins with the name of the video and has no path."""
    pytest.importorskip("av")
    random = Random(seed)
    for _ in range(30):
        _read(hostile_video(random))


def _read(content: bytes) -> None:
    """Read a video within limits; every failure is an error of the user, in little time."""
    start, problem = process_time(), None
    try:
        info = video_info(content, "clip", max_pixels=2_000_000_000, max_frames=30_000)
        list(islice(read_frames(content, range(min(4, info.num_frames)), "clip"), 4))
    except DatasetError as error:
        problem = error
    assert problem is None or (str(problem).startswith("clip ") and problem.hint)
    assert process_time() - start < SECONDS
