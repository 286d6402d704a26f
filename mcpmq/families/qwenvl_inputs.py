"""Model inputs of Qwen-VL: images of any size, videos, and tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveFloat, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families import family_of
from mcpmq.families.audio_inputs import AudioEncoding
from mcpmq.families.chat_processor import ChatProcessor, check_video
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.family import VisionShape
from mcpmq.families.inputs import Inputs
from mcpmq.families.preprocessor import check_consistent
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.qwenvl_resizing import ImagePixels, Resizing
from mcpmq.families.qwenvl_video import SampledVideo, open_video_resizing
from mcpmq.families.tokenizer import open_tokenizer, placeholder_id
from mcpmq.families.video_frames import VideoFrames
from mcpmq.system.json_file import read_json


class _VisionConfig(ConfigSchema):
    tokens_per_second: PositiveFloat = 4


class _Config(ConfigSchema):
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 32768
    vision_config: _VisionConfig = _VisionConfig()


@dataclass(frozen=True, slots=True)
class QwenVlProcessor(ChatProcessor):
    """Encodes samples with the tokenizer, chat template and preprocessor settings of a checkpoint."""

    resizing: Resizing
    folder: Path  # with the settings of the video processor
    model_type: str
    tokens_per_second: float
    audio_encoding: AudioEncoding | None = None

    @classmethod
    def open(cls, checkpoint: Path, prompt_format: PromptFormat) -> Self:
        """Open the text files of a checkpoint or an artifact.

        Raises:
            CheckpointError: a file is missing or invalid.
        """
        raw = read_json(checkpoint / "config.json")
        config = validate_config(_Config, cls.language_config(raw))
        needed = (*prompt_format.vision_tags, prompt_format.image_token, prompt_format.end_of_turn)
        tokenizer, special = open_tokenizer(checkpoint, (*needed, *prompt_format.audio_tokens), config.vocab_size)
        template = ChatTemplate.open(checkpoint, default_tokens=prompt_format.default_special_tokens)
        resizing = Resizing.open(checkpoint)
        architecture = family_of(raw).parse_architecture(raw)
        _check_vision(architecture.required_vision, resizing)
        audio = AudioEncoding.open(checkpoint, architecture.audio) if architecture.audio else None
        limits = config.vocab_size, config.max_position_embeddings
        return cls(
            tokenizer,
            template,
            *limits,
            special,
            prompt_format,
            resizing,
            checkpoint,
            str(raw.get("model_type")),
            config.vision_config.tokens_per_second,
            audio,
        )

    @staticmethod
    def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the part of a raw config.json that describes the language model."""
        return {**config, **(config.get("text_config") or {})}

    def prompt_media(self, label: str, count: int, has_video: bool) -> "ResizedMedia":
        """Return the images and videos of a new prompt, of any number.

        Raises:
            DatasetError: the prompt has a video, and the family does not support it.
        """
        check_video(label, has_video, self.prompt_format)
        return ResizedMedia(self)

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module.

        `input_ids` int64 [1, tokens]; with images `pixel_values` and `image_grid_thw`, those of
        `Resizing.graph_inputs` for all images, and `mm_token_type_ids` int32 [1, tokens], 1 for image tokens.

        With a video all images are videos of one temporal patch, so that the vision encoder runs once for both:
        `pixel_values_videos`, `video_grid_thw`, `mm_token_type_ids` of 2, and for times in seconds
        `second_per_grid_ts` float32 [videos].
        """
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
        parts = [self.resizing.graph_inputs(pixels) for pixels in inputs.slices]
        pixels = np.concatenate([part["pixel_values"] for part in parts])
        grids = np.concatenate([part["grid_thw"] for part in parts])
        is_image = tokens["input_ids"] == self.special_tokens[self.prompt_format.image_token]
        if not inputs.frame_intervals:
            types = is_image.astype(np.int32)
            return tokens | {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": types}
        ids = np.where(is_image, self.video_token_id, tokens["input_ids"])
        videos = {
            "input_ids": ids,
            "pixel_values_videos": pixels,
            "video_grid_thw": _video_grids(grids, inputs.slices_per_image),
            "mm_token_type_ids": 2 * (ids == self.video_token_id).astype(np.int32),
        }
        if self.prompt_format.video_time == "seconds":
            videos["second_per_grid_ts"] = np.array(inputs.frame_intervals, np.float32)
        return videos

    @property
    def video_token_id(self) -> int:
        """Return the id of the placeholder of videos; see `placeholder_id`."""
        return placeholder_id(self.tokenizer, self.prompt_format.video_token, self.vocab_size)


def _video_grids(grids: NDArray[np.int64], slices_per_video: Sequence[int]) -> NDArray[np.int64]:
    """Return temporal patches, rows and columns of every video from those of its slices."""
    first = np.cumsum([0, *slices_per_video[:-1]])
    return np.column_stack([slices_per_video, grids[first, 1:]]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ResizedMedia:
    """The resized images and videos of one prompt; an image is one slice, and a video one for every temporal patch."""

    processor: QwenVlProcessor
    slices: list[ImagePixels] = field(default_factory=list)
    slices_per_image: list[int] = field(default_factory=list)
    frame_intervals: list[float] = field(default_factory=list)
    slice_times: list[int] = field(default_factory=list)

    def text(self, image: Image.Image) -> str:
        """Resize an image, and return the tags with its tokens."""
        self._add([self.processor.resizing.resize(image)], 0.0, [0])
        begin, end = self.processor.prompt_format.vision_tags
        return f"{begin}{self._placeholders(self.processor.prompt_format.image_token)}{end}"

    def video_text(self, video: VideoFrames) -> str:
        """Sample and resize a video, and return the tags with its tokens.

        As in transformers, frames with timestamps have tags of their own inside of those of the video.
        """
        token, time = self.processor.prompt_format.video_token, self.processor.prompt_format.video_time
        assert self.processor.video_token_id
        resizing = open_video_resizing(self.processor.folder, self.processor.model_type, self.processor.resizing)
        sampled = resizing.sample(video)
        self._add(sampled.slices, sampled.seconds_per_slice, self._times(sampled))
        frames, (begin, end) = self._placeholders(token), self.processor.prompt_format.vision_tags
        if time == "text":
            frames = "".join(f"<{one:.1f} seconds>{begin}{frames}{end}" for one in sampled.timestamps)
        else:
            frames *= len(sampled.slices)
        return f"{begin}{frames}{end}"

    def _times(self, sampled: SampledVideo) -> Sequence[int]:
        """Return the time positions of the slices of a video, computed in float32 as in transformers."""
        time, indices = self.processor.prompt_format.video_time, np.arange(len(sampled.slices), dtype=np.float32)
        if time == "text":
            return [0] * len(indices)
        per_second = np.float32(self.processor.tokens_per_second)
        step = per_second * np.float32(sampled.seconds_per_slice) if time == "seconds" else np.float32(1)
        times: list[int] = (indices * step).astype(np.int64).tolist()
        return times

    def _add(self, slices: Sequence[ImagePixels], interval: float, times: Sequence[int]) -> None:
        self.slices.extend(slices)
        self.slices_per_image.append(len(slices))
        self.frame_intervals.append(interval)
        self.slice_times.extend(times)

    def _placeholders(self, token: str) -> str:
        """Return the tokens of the last slice."""
        return token * math.prod(self.processor.resizing.token_grid(self.slices[-1]))

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of the tokens of every slice: int64 [slices, 2].

        Raises:
            CheckpointError: the prompt has other images.
        """
        counts = [math.prod(self.processor.resizing.token_grid(pixels)) for pixels in self.slices]
        places = np.flatnonzero(np.isin(tokens, self._token_ids()))
        ends = np.cumsum(counts, dtype=np.int64)
        if len(places) != sum(counts) or (counts and (places[ends - 1] - places[ends - counts] + 1 != counts).any()):
            runs = int((np.diff(places, prepend=-2) > 1).sum())
            raise CheckpointError(
                f"the rendered prompt has {runs} of {len(counts)} images",
                "compare `chat_template` with the published template",
            )
        return np.stack([places[ends - counts], places[ends - 1] + 1], axis=1) if counts else np.empty((0, 2), np.int64)

    def _token_ids(self) -> list[int]:
        image = self.processor.special_tokens[self.processor.prompt_format.image_token]
        return [image, self.processor.video_token_id] if any(self.frame_intervals) else [image]


def _check_vision(shape: VisionShape, resizing: Resizing) -> None:
    """Check that the patches of the image processor are those of the vision encoder."""
    check_consistent("patch_size", shape.patch_size, resizing.patch_size)
    check_consistent("spatial_merge_size", shape.spatial_merge_size, resizing.merge_size)
    check_consistent("temporal_patch_size", shape.temporal_patch_size, resizing.temporal_patch_size)


open_processor = QwenVlProcessor.open


def open_vision_inputs(folder: Path, _: PromptFormat) -> Resizing:
    """Open the resizing settings."""
    return Resizing.open(folder)
