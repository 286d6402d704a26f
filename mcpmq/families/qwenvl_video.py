"""Videos of Qwen-VL: sampling, resizing and timestamps of frames by the rules of the video processor."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError, DatasetError
from mcpmq.families.config_schema import validate_config
from mcpmq.families.preprocessor import BICUBIC, ChannelMeans, ChannelStds, read_video_preprocessor
from mcpmq.families.qwenvl_resizing import ImagePixels, PixelBounds, Resizing
from mcpmq.families.video_frames import VideoFrames, resize_frame

SAME_AS_IMAGES = ("patch_size", "merge_size", "temporal_patch_size", "enabled_mean_and_std", "scale")
QWEN2, QWEN3 = "Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor"
QWEN3_MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
TOKEN_SHARE = 0.9  # of `max_video_tokens`, for the frames of a video
FLOOR_FACTOR = 1.05  # of the least pixels, for the bound of a frame
FRAMES_HINT = "give more frames, or fewer with `num_frames`"


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """The sampled frames of a video.

    Attributes:
        slices: uint8 RGB [frames, height, width, 3] for every temporal patch.
        timestamps: seconds, the mean of the first and the last frame of every temporal patch.
        seconds_per_slice: mean seconds from one temporal patch to the next.
    """

    slices: Sequence[ImagePixels]
    timestamps: Sequence[float]
    seconds_per_slice: float


class VideoResizing(Resizing):
    """Settings of the video processor of Qwen2-VL and Qwen2.5-VL; defaults and rules are those of transformers."""

    default_size: ClassVar[PixelBounds] = PixelBounds(shortest_edge=128 * 28 * 28, longest_edge=28 * 28 * 768)

    image_processor_type: str = ""
    size: PixelBounds = default_size
    resample: Literal[3] = BICUBIC  # type: ignore[assignment]
    do_sample_frames: bool = False
    fps: PositiveFloat | None = None
    num_frames: PositiveInt | None = None
    min_frames: PositiveInt = 4
    max_frames: PositiveInt = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: PositiveInt = 128_000

    def sample(self, video: VideoFrames) -> SampledVideo:
        """Return the sampled and resized frames of a video.

        Raises:
            DatasetError: the video has too few frames, or a frame cannot be read or has another size.
        """
        indices, size = self._indices(video), self.temporal_patch_size
        padded = [*indices, *[indices[-1]] * (-len(indices) % size)]
        frames = list(self._resized(video, indices))
        frames += frames[-1:] * (len(padded) - len(frames))
        slices = [np.stack(frames[start : start + size]) for start in range(0, len(frames), size)]
        seconds = [index / video.fps for index in padded]
        timestamps = [(seconds[start] + seconds[start + size - 1]) / 2 for start in range(0, len(seconds), size)]
        return SampledVideo(slices, timestamps, size / (len(indices) / video.count * video.fps))

    def _indices(self, video: VideoFrames) -> list[int]:
        """Return the indices of the frames that are used."""
        given = video.sample_fps is not None or video.sample_count is not None
        if video.is_sampled or not (given or self.do_sample_frames):
            return list(range(video.count))
        fps, count = (video.sample_fps, video.sample_count) if given else (self.fps, self.num_frames)
        found = self._sampled_indices(video, fps, count)
        if not found:
            raise DatasetError(f"{video.label} has too few frames to sample: {video.count}", FRAMES_HINT)
        return found

    def _sampled_indices(self, video: VideoFrames, fps: float | None, count: int | None) -> list[int]:
        import torch

        size = self.temporal_patch_size
        if count is not None:
            count = round(count / size) * size
        elif fps is not None:
            largest = math.floor(min(self.max_frames, video.count) / size) * size
            frames = min(max(video.count / video.fps * fps, self.min_frames), largest, video.count)
            count = math.floor(frames / size) * size
        else:
            return list(range(video.count))
        if count > video.count:
            raise DatasetError(f"{video.label} has {video.count} frames, fewer than the {count} to sample", FRAMES_HINT)
        if not count:
            return []
        indices: list[int] = torch.arange(0, video.count, video.count / count).int().tolist()
        return indices

    def _resized(self, video: VideoFrames, indices: Sequence[int]) -> Iterator[ImagePixels]:
        for frame in video.read_equal(indices):
            yield resize_frame(frame, *self._frame_size(len(indices), *frame.size))

    def _frame_size(self, count: int, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the resized frames of a video with `count` of them."""
        if not self.cap_pixels_per_frame:
            return self.best_size(width, height)
        total = int(self.max_video_tokens * self.size_factor**2 * TOKEN_SHARE)
        share = min(self.size.longest_edge, total * self.temporal_patch_size // count)
        largest = max(share, int(self.size.shortest_edge * FLOOR_FACTOR))
        bounds = PixelBounds(shortest_edge=self.size.shortest_edge, longest_edge=largest)
        return self.model_copy(update={"size": bounds}).best_size(width, height)


class TimedVideoResizing(VideoResizing):
    """Settings of the video processor of Qwen3-VL, whose bounds are for the pixels of all frames."""

    merges_bounds: ClassVar[bool] = False
    default_size: ClassVar[PixelBounds] = PixelBounds(shortest_edge=128 * 32 * 32, longest_edge=32 * 32 * 768)

    patch_size: PositiveInt = Field(default=16, le=256)
    image_mean: ChannelMeans = (0.5, 0.5, 0.5)
    image_std: ChannelStds = (0.5, 0.5, 0.5)
    size: PixelBounds = default_size
    do_sample_frames: bool = True
    fps: PositiveFloat | None = 2.0
    max_video_tokens: PositiveInt = 768

    def _sampled_indices(self, video: VideoFrames, fps: float | None, count: int | None) -> list[int]:
        if count is None and fps is not None:
            count = min(max(int(video.count / video.fps * fps), self.min_frames), self.max_frames, video.count)
        if count is None:
            count = min(max(video.count, self.min_frames), self.max_frames)
        indices: list[int] = np.linspace(0, video.count - 1, count).round().astype(int).tolist()
        return indices

    def _frame_size(self, count: int, width: int, height: int) -> tuple[int, int]:
        if count < self.temporal_patch_size:
            raise DatasetError(
                f"a video has {count} frames, fewer than the {self.temporal_patch_size} of a temporal patch",
                "give more frames, or give it as an image",
            )
        factor, largest = self.size_factor, self.size.longest_edge
        if self.cap_pixels_per_frame:
            share = min(self.max_video_tokens * factor**2, largest // count)
            largest = max(share, int(self.size.shortest_edge * FLOOR_FACTOR)) * count
        if min(width, height) < factor:
            enlarge = max(factor / height, factor / width)
            width, height = int(width * enlarge), int(height * enlarge)
        sides = [round(side / factor) * factor for side in (width, height)]
        frames = round(count / self.temporal_patch_size) * self.temporal_patch_size
        if frames * math.prod(sides) > largest:
            shrink = math.sqrt(count * height * width / largest)
            sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)]
        elif frames * math.prod(sides) < self.size.shortest_edge:
            grow = math.sqrt(self.size.shortest_edge / (count * height * width))
            sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
        return sides[0], sides[1]


def open_video_resizing(folder: Path, model_type: str, images: Resizing) -> VideoResizing:
    """Read the settings of the video processor; those of patches and pixel values are those of images.

    Raises:
        CheckpointError: no file has the settings, or they are invalid or not supported.
    """
    settings, file = read_video_preprocessor(folder)
    kind = {QWEN2: VideoResizing, QWEN3: TimedVideoResizing}.get(_processor_type(settings, model_type))
    if kind is None:
        raise CheckpointError(
            f"`{file}` has the video processor `{settings['video_processor_type']}`, which is not supported",
            "compare it with the published file",
        )
    found = validate_config(kind, settings, file)
    for name in SAME_AS_IMAGES:
        if getattr(found, name) != getattr(images, name):
            message = f"`{file}`: the {name.removeprefix('enabled_')} of videos is not that of images"
            raise CheckpointError(message, "compare it with the published file")
    return found


def _processor_type(settings: Mapping[str, Any], model_type: str) -> str:
    """Return the class in transformers: that of the file, that of its image processor, or that of the model type."""
    if "video_processor_type" in settings:
        return str(settings["video_processor_type"])
    if settings.get("image_processor_type") == QWEN2.replace("Video", "Image"):
        return QWEN2
    return QWEN3 if model_type in QWEN3_MODEL_TYPES else QWEN2
