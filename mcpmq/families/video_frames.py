"""Videos of a sample: number and rate of their frames, and frames that are read when a processor samples them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mcpmq.dataset import EmbeddedImage, ImageSource, Video
from mcpmq.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

LIST_FPS = 2.0  # of a list of frames without `fps`, as in qwen-vl-utils


@dataclass(frozen=True, slots=True)
class VideoFrames:
    """The frames of a video.

    Attributes:
        label: names the video in errors.
        count: number of frames.
        fps: frames per second.
        read: return RGB frames by their indices, which do not decrease.
        is_sampled: all frames are used, without the rules of the processor.
        sample_fps: frames per second to sample, instead of the rules of the processor.
        sample_count: number of frames to sample, instead of the rules of the processor.
    """

    label: str
    count: int
    fps: float
    read: "Callable[[Sequence[int]], Iterator[Image.Image]]"
    is_sampled: bool = False
    sample_fps: float | None = None
    sample_count: int | None = None

    def read_equal(self, indices: Sequence[int]) -> "Iterator[Image.Image]":
        """Yield frames by their indices.

        Raises:
            DatasetError: a frame has another size than the first one.
        """
        first: tuple[int, int] | None = None
        for index, frame in zip(indices, self.read(indices), strict=True):
            first = first or frame.size
            if frame.size != first:
                sizes = f"{frame.width}x{frame.height} pixels, the first one {first[0]}x{first[1]}"
                raise DatasetError(f"{self.label}: frame {index} has {sizes}", "resize the frames to one size")
            yield frame


def read_video(path: Path, label: str) -> VideoFrames:
    """Open a video file, or a folder of frames, which is used whole; `label` names it in errors.

    Raises:
        DatasetError: the path has no video, or it cannot be read.
    """
    from mcpmq.dataset.media_files import frame_names

    names = frame_names(path.parent, path.name, label)
    return _open(label, Video(tuple(path.parent / name for name in names) or path))


def open_video(sample_id: str, video: Video) -> VideoFrames:
    """Open the video of a sample; a list of frames without settings is used whole.

    Raises:
        DatasetError: the video cannot be read.
    """
    return _open(f"sample `{sample_id}`", video)


def _open(owner: str, video: Video) -> VideoFrames:
    label = f"{owner}: the video"
    if isinstance(video.source, tuple):
        rate, is_sampled = video.fps or LIST_FPS, video.fps is None and video.num_frames is None
        read = partial(_read_list, owner, video.source)
        return VideoFrames(label, len(video.source), rate, read, is_sampled, sample_count=video.num_frames)
    from mcpmq.system.video_file import read_frames, video_info

    source = video.source
    file, name = (source.content, source.name) if isinstance(source, EmbeddedImage) else (source, source.name)
    label = f"{label} `{name}`"
    info = video_info(file, label)
    read = partial(read_frames, file, label=label)
    return VideoFrames(label, info.num_frames, info.fps, read, False, video.fps, video.num_frames)


def _read_list(owner: str, frames: Sequence[ImageSource], indices: Sequence[int]) -> "Iterator[Image.Image]":
    from mcpmq.families.images import read_source

    for index in indices:
        yield read_source(owner, frames[index])


def spread_frames(video: VideoFrames, count: int) -> "list[Image.Image]":
    """Return at most `count` frames, evenly spread, to show the video."""
    return list(video.read(range(0, video.count, -(-video.count // count))))


def resize_frame(frame: "Image.Image", width: int, height: int) -> "NDArray[np.uint8]":
    """Resize a frame bicubically with antialiasing, as torchvision does: uint8 [height, width, 3]."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].contiguous()
    if pixels.shape[2:] != (height, width):
        pixels = torch.nn.functional.interpolate(
            pixels, (height, width), mode="bicubic", align_corners=False, antialias=True
        )
    return np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())
