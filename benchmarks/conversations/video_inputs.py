"""Videos of a conversation as arguments of a processor of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from mcpmq.dataset import Video

LIST_FPS = 2.0  # of a list of frames without a rate
PUBLISHED_FRAMES = 64  # of a video of MiniCPM-V 2.6


def video_options(videos: Sequence[Video], count_name: str = "num_frames") -> dict[str, Any]:
    """Return the frames, their metadata, and the sampling of videos, which are all of one kind.

    `count_name` is the processor's argument for the number of frames.
    """
    frames = [_frames(video) for video in videos]
    metadata = [_metadata(video, one) for video, one in zip(videos, frames, strict=True)]
    options: dict[str, Any] = {"videos": frames, "video_metadata": metadata}
    first = videos[0]
    if first.num_frames is not None:
        return options | {"do_sample_frames": True, count_name: first.num_frames, "fps": None}
    if isinstance(first.source, tuple):
        return options | ({"do_sample_frames": False} if first.fps is None else {})
    return options | ({} if first.fps is None else {"do_sample_frames": True, "fps": first.fps, "num_frames": None})


def read_rgb(file: Path) -> Image.Image:
    """Return the image of a file as RGB."""
    with Image.open(file) as image:
        return image.convert("RGB")


def published_frames(video: Video) -> list[Image.Image]:
    """Return the frames of a video for MiniCPM-V 2.0 to 4.5, sampled as in the published usage of 2.6."""
    frames, fps = list(map(Image.fromarray, _frames(video))), _metadata(video, [])["fps"]
    if isinstance(video.source, tuple) and video.fps is None and video.num_frames is None:
        return frames
    step = 1 if video.num_frames else max(1, round(fps / (1 if isinstance(video.source, tuple) else video.fps or 1)))
    chosen, largest = frames[::step], video.num_frames or PUBLISHED_FRAMES
    if len(chosen) <= largest:
        return chosen
    gap = len(chosen) / largest
    return [chosen[int(number * gap + gap / 2)] for number in range(largest)]


def _frames(video: Video) -> NDArray[np.uint8]:
    """Return all frames: uint8 [frames, height, width, 3]."""
    if isinstance(video.source, tuple):
        return np.stack([np.asarray(read_rgb(file)) for file in video.files if isinstance(file, Path)])
    assert isinstance(video.source, Path)
    with Image.open(video.source) as animation:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)])


def _metadata(video: Video, frames: Sequence[Any] | NDArray[np.uint8]) -> dict[str, Any]:
    fps = (video.fps or LIST_FPS) if isinstance(video.source, tuple) else _file_fps(video)
    count = len(frames)
    return {"total_num_frames": count, "fps": fps, "duration": count / fps, "frames_indices": list(range(count))}


def _file_fps(video: Video) -> float:
    assert isinstance(video.source, Path)
    with Image.open(video.source) as animation:
        durations = [frame.copy().info["duration"] for frame in ImageSequence.Iterator(animation)]
    return float(1000 * len(durations) / sum(durations))
