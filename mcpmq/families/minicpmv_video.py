"""Videos of MiniCPM-V: sampling of frames, and their slices."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.config_schema import validate_config
from mcpmq.families.preprocessor import BICUBIC, check_consistent, read_video_preprocessor
from mcpmq.families.slicing import MergedSlicing, Slicing
from mcpmq.families.video_frames import VideoFrames, resize_frame

FRAMES_PER_SECOND, MAX_FRAMES = 1.0, 64  # of the published usage of MiniCPM-V 2.6
SECONDS_PER_INDEX = 0.1  # of long videos in MiniCPM-V 4.6
VIDEO_PROCESSOR = "MiniCPMV4_6VideoProcessor"
SAME_AS_IMAGES = ("patch_size", "downsample_mode", "enabled_mean_and_std", "scale")


def sample_image_frames(video: VideoFrames) -> list[int]:
    """Return the indices of the frames that become images: one per second, at most `MAX_FRAMES`.

    Source: the published usage of MiniCPM-V 2.6.
    """
    if video.is_sampled:
        return list(range(video.count))
    if video.sample_count is not None:
        return _spread(range(video.count), video.sample_count)
    step = max(1, round(video.fps / (video.sample_fps or FRAMES_PER_SECOND)))
    return _spread(range(0, video.count, step), MAX_FRAMES)


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """Return the indices in the middle of `count` equal parts, or all if they are not more."""
    if len(indices) <= count:
        return list(indices)
    gap = len(indices) / count
    return [indices[int(number * gap + gap / 2)] for number in range(count)]


class VideoSlicing(MergedSlicing):
    """Settings of the video processor of 4.6 and 4.7; frames are resized as torchvision does."""

    image_processor_type: str = ""
    resample: Literal[3] = BICUBIC  # type: ignore[assignment]
    do_sample_frames: bool = True
    max_num_frames: PositiveInt = 128
    stack_frames: Literal[1] = 1

    @classmethod
    def open_for(cls, folder: Path, images: Slicing) -> Self:
        """Read the settings; those of patches and pixel values are those of images.

        Raises:
            CheckpointError: no file has the settings, or they are invalid or not supported.
        """
        settings, file = read_video_preprocessor(folder)
        found = validate_config(cls, settings, file)
        check_consistent("video_processor_type", VIDEO_PROCESSOR, settings.get("video_processor_type", VIDEO_PROCESSOR))
        for name in SAME_AS_IMAGES:
            if getattr(found, name) != getattr(images, name):
                message = f"`{file}`: the {name.removeprefix('enabled_')} of videos is not that of images"
                raise CheckpointError(message, "compare it with the published file")
        return found

    def resize_image(self, image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
        """Resize a frame: uint8 [height, width, 3]."""
        return resize_frame(image, width, height)

    def sample(self, video: VideoFrames) -> list[int]:
        """Return the indices of the frames that are used: one per second, at most `max_num_frames`.

        Source: the video processor in transformers.
        """
        given = video.sample_fps is not None or video.sample_count is not None
        if video.is_sampled or not (given or self.do_sample_frames):
            return list(range(video.count))
        largest, duration = video.sample_count or self.max_num_frames, video.count / video.fps
        per_second = video.sample_fps or 1.0
        if duration * per_second <= largest:
            times = [number / per_second for number in range(math.ceil(duration * per_second))]
            return [min(int(time * video.fps), video.count - 1) for time in times]
        times = [round(number * SECONDS_PER_INDEX, 1) for number in range(int(duration / SECONDS_PER_INDEX))]
        indices = [min(int(time * video.fps), video.count - 1) for time in times]
        if len(indices) <= largest:
            return indices
        return [indices[place] for place in np.linspace(0, len(indices) - 1, largest, dtype=int)]
