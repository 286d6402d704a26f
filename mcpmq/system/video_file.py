"""Read the frames of a video file: an animated image with Pillow, a container with PyAV."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from mcpmq.errors import DatasetError
from mcpmq.system.image_color import check_color_space
from mcpmq.system.image_file import FORMATS, HEADER_NBYTES, MAX_IMAGE_PIXELS, OversizedImage, convert_frame

MAX_FRAMES = 200_000  # two hours of 25 frames a second
MAX_VIDEO_NBYTES = 1 << 32
# Browsers show frames with a shorter or no duration for a tenth of a second.
SHORTEST_MILLISECONDS, DEFAULT_MILLISECONDS = 20, 100
EXTRACT_HINT = "extract frames, for example with `ffmpeg -i clip.mp4 -vf fps=2 %05d.png`, and give them or their folder"
DECODER_HINT = f"run `pip install 'mcpmq[video]'` where mcpmq runs; or {EXTRACT_HINT}"
SHORTER_HINT = "give a shorter or smaller video"
CONTAINERS = {(4, b"ftyp"): "mp4", (0, b"\x1a\x45\xdf\xa3"): "matroska", (8, b"AVI "): "avi"}  # mark at an offset
CONTAINER_NAMES = "MP4, MOV, WebM, Matroska, AVI"
Result = TypeVar("Result")
VideoFile = Path | bytes  # a file, or its content
Frame = Callable[[], Image.Image]  # converts a decoded frame


@dataclass(frozen=True, slots=True)
class _Limits:
    """The largest number of frames, and of pixels in all of them."""

    frames: int
    pixels: int | None

    def check(self, frames: int, pixels: int) -> None:
        """Check the frames until now and their pixels.

        Raises:
            OversizedImage: they are more.
        """
        if frames > self.frames:
            raise OversizedImage(f"has more than {self.frames:,} frames", EXTRACT_HINT)
        if self.pixels is not None and pixels > self.pixels:
            raise OversizedImage(f"has more than {self.pixels:,} pixels in all frames", SHORTER_HINT)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Number, rate and size of the frames of a video."""

    num_frames: int
    fps: float  # the mean
    width: int
    height: int


def video_info(file: VideoFile, label: str, max_pixels: int | None = None, max_frames: int = MAX_FRAMES) -> VideoInfo:
    """Decode all frames of a video once; `label` names it in errors.

    Raises:
        DatasetError: it is not a video, is damaged or too large, has more than `max_frames`, or more than `max_pixels`
            in all of them, or PyAV is needed and not installed.
    """
    limits = _Limits(min(max_frames, MAX_FRAMES), max_pixels)
    with _decoder_errors(label), _open(file) as stream:
        container = _container(stream)
        return _container_info(stream, container, limits) if container else _animation_info(stream, limits)


def read_frames(file: VideoFile, indices: Sequence[int], label: str) -> Iterator[Image.Image]:
    """Yield the frames with these indices, which do not decrease, as 8-bit sRGB on a white background.

    Raises:
        DatasetError: as `video_info`.
    """
    remaining = list(indices)
    with _decoder_errors(label), _open(file) as stream:
        container = _container(stream)
        frames = _container_frames(stream, container) if container else _animation_frames(stream)
        for number, convert in enumerate(frames):
            while remaining and remaining[0] == number:
                remaining.pop(0)
                yield _without_warnings(convert)
            if not remaining:
                return


@contextmanager
def _decoder_errors(label: str) -> Iterator[None]:
    """Raise an error that names the video for every error of its decoder."""
    try:
        yield
    except DatasetError as error:
        raise type(error)(f"{label} {error}", error.hint) from error
    except Exception as error:  # decoders have no common exception
        raise DatasetError(f"{label} cannot be read: {error or type(error).__name__}", EXTRACT_HINT) from error


def _without_warnings(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of Pillow, which warns of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def _open(file: VideoFile) -> BinaryIO:
    if isinstance(file, bytes):
        return BytesIO(file)
    if not file.is_file():
        raise DatasetError("is not a regular file", "give the path of a video file")
    if (nbytes := file.stat().st_size) > MAX_VIDEO_NBYTES:
        raise OversizedImage(f"has {nbytes:,} bytes, more than {MAX_VIDEO_NBYTES:,}", EXTRACT_HINT)
    return file.open("rb")


def _container(stream: BinaryIO) -> str | None:
    """Return the format of a container; None for an image.

    Only these formats are opened: playlists name other files.
    """
    head = stream.read(64)
    stream.seek(0)
    marks = ((head[at : at + len(mark)] == mark, name) for (at, mark), name in CONTAINERS.items())
    found = next((name for is_found, name in marks if is_found), None)
    return None if b"avif" in head or b"avis" in head else found


def _animation_info(stream: BinaryIO, limits: _Limits) -> VideoInfo:
    with _animation(stream) as image:
        milliseconds: list[float] = []
        for _ in _seek_frames(image, limits):
            frames = len(milliseconds) + 1
            limits.check(frames, frames * image.width * image.height)
            _without_warnings(image.load)
            shown = float(image.info.get("duration") or 0)
            milliseconds.append(shown if shown >= SHORTEST_MILLISECONDS else DEFAULT_MILLISECONDS)
        return VideoInfo(len(milliseconds), 1000 * len(milliseconds) / sum(milliseconds), *image.size)


def _animation_frames(stream: BinaryIO) -> Iterator[Frame]:
    with _animation(stream) as image:
        for _ in _seek_frames(image, _Limits(MAX_FRAMES, None)):
            yield partial(convert_frame, image)


def _animation(stream: BinaryIO) -> Image.Image:
    check_color_space(stream.read(HEADER_NBYTES))
    stream.seek(0)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = _without_warnings(Image.open, stream, "r", formats)
    except UnidentifiedImageError as error:
        known = f"neither an image of the formats {', '.join(FORMATS)} nor a container of the formats {CONTAINER_NAMES}"
        raise DatasetError(f"is {known}", EXTRACT_HINT) from error
    _check_size(image.width, image.height)
    return image


def _seek_frames(image: Image.Image, limits: _Limits) -> Iterator[int]:
    """Seek to one frame after the other; the default image of an APNG may not be one of them."""
    count = getattr(image, "n_frames", 1)
    limits.check(count, 0)
    for number in range(int(bool(image.info.get("default_image"))), count):
        _without_warnings(image.seek, number)
        _check_size(image.width, image.height)  # a frame of a GIF file can be larger than the ones before
        yield number


def _container_info(stream: BinaryIO, container: str, limits: _Limits) -> VideoInfo:
    with _decoder(stream, container) as opened:
        video = opened.streams.video[0]
        count = pixels = 0
        for frame in opened.decode(video):
            count += 1
            pixels += frame.width * frame.height
            limits.check(count, pixels)
        if not count:
            raise DatasetError("has no frame", EXTRACT_HINT)
        rate = video.average_rate or video.guessed_rate
        return VideoInfo(count, float(rate or 1000 / DEFAULT_MILLISECONDS), video.width, video.height)


def _container_frames(stream: BinaryIO, container: str) -> Iterator[Frame]:
    with _decoder(stream, container) as opened:
        for frame in opened.decode(opened.streams.video[0]):
            yield frame.to_image


def _decoder(stream: BinaryIO, container: str) -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise DatasetError("is a container, which PyAV decodes, and `av` is not installed", DECODER_HINT) from error
    largest = {"max_pixels": str(MAX_IMAGE_PIXELS)}  # of a frame, which can be larger than those of the header
    opened = av.open(stream, format=container, options=largest)
    if not opened.streams.video:
        opened.close()
        raise DatasetError("has no video stream", EXTRACT_HINT)
    video = opened.streams.video[0]
    _check_size(video.width, video.height)
    video.codec_context.options = largest
    return opened


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise OversizedImage(f"has frames of {width * height:,} pixels, more than {MAX_IMAGE_PIXELS:,}", EXTRACT_HINT)
