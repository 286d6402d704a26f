"""Videos of requests: parts for the worker of the engine, which decodes them within limits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mcpmq.errors import DatasetError
from mcpmq.families.video_frames import VideoFrames
from mcpmq.serving.images import read_data_url
from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError
from mcpmq.system.image_file import OversizedImage
from mcpmq.system.video_file import EXTRACT_HINT, VideoInfo, read_frames, video_info

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class VideoUrl:
    """A video as a data URL, and the frames to sample instead of the rules of the processor."""

    url: str
    num_frames: int | None = None
    fps: float | None = None

    def to_part(self) -> dict[str, Any]:
        """Return the part for the worker."""
        sampling = {"num_frames": self.num_frames, "fps": self.fps}
        return {"type": "video_url", "video_url": {"url": self.url}, **sampling}


def check_urls(urls: Sequence[str]) -> None:
    """Check that all videos are data URLs.

    Raises:
        RequestError: one is another URL, which is not fetched, or is not base64.
    """
    for url in urls:
        read_data_url(url, "video")


def open_part(part: dict[str, Any], number: int, limits: Limits) -> VideoFrames:
    """Open the video of a part of `VideoUrl`, whose frames are read when a processor samples them.

    Raises:
        RequestError: it has too many pixels, is too long, cannot be read, or has a container whose decoder is not
            installed.
    """
    label, content = f"video {number}", read_data_url(part["video_url"]["url"], "video")
    info = _checked_info(content, label, limits)
    read = partial(_read, content, label, limits.video_frames)
    return VideoFrames(label, info.num_frames, info.fps, read, False, part.get("fps"), part.get("num_frames"))


def _checked_info(content: bytes, label: str, limits: Limits) -> VideoInfo:
    try:
        info = video_info(content, label, limits.video_pixels, limits.video_file_frames)
    except OversizedImage as error:
        raise RequestError(413, str(error), "messages") from error
    except DatasetError as error:
        raise RequestError(400, f"{error}; {error.hint}", "messages") from error
    if info.num_frames / info.fps > limits.video_seconds:
        raise RequestError(413, f"{label} is longer than {limits.video_seconds:g} seconds", "messages")
    return info


def _read(content: bytes, label: str, most: int, indices: Sequence[int]) -> "Iterator[Image.Image]":
    if len(indices) > most:
        raise DatasetError(
            f"{label}: {len(indices):,} frames are sampled, more than {most}; sample fewer with `media_io_kwargs`",
            EXTRACT_HINT,
        )
    return read_frames(content, indices, label)
