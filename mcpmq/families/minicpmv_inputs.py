"""Model inputs of MiniCPM-V: slices of images and frames, tokens, and the image token spans."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.audio_inputs import AudioEncoding
from mcpmq.families.chat_processor import ChatProcessor
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.inputs import Inputs
from mcpmq.families.minicpmv_video import VideoSlicing, sample_image_frames
from mcpmq.families.preprocessor import check_consistent
from mcpmq.families.prompt_format import MINICPM_V_FORMAT, PromptFormat
from mcpmq.families.slicing import SLICING_TYPES, Slicing, slice_image, target_sizes
from mcpmq.families.tokenizer import open_tokenizer, placeholder_id
from mcpmq.families.video_frames import VideoFrames
from mcpmq.system.json_file import read_json


class _Config(ConfigSchema):
    vocab_size: PositiveInt
    query_num: PositiveInt = Field(default=64, le=4096)
    max_position_embeddings: PositiveInt = 32768
    patch_size: PositiveInt = 14


@dataclass(frozen=True, slots=True)
class MiniCpmVProcessor(ChatProcessor):
    """Encodes samples with the tokenizer, chat template and preprocessor settings of a checkpoint."""

    slicing: Slicing
    num_queries: int  # image tokens per slice
    folder: Path  # with the settings of the video processor
    audio_encoding: AudioEncoding | None = None

    @classmethod
    def open(cls, checkpoint: Path, prompt_format: PromptFormat = MINICPM_V_FORMAT) -> Self:
        """Open the text files of a checkpoint or an artifact.

        Raises:
            CheckpointError: a file is missing or invalid, or two files contradict each other.
        """
        raw, slicing = read_json(checkpoint / "config.json"), open_vision_inputs(checkpoint, prompt_format)
        config = validate_config(_Config, {**raw, **(raw.get("text_config") or {})})
        check_consistent("patch_size", config.patch_size, slicing.patch_size)
        check_consistent("query_num", config.query_num, slicing.image_feature_size or config.query_num)
        tokenizer, special = open_tokenizer(checkpoint, prompt_format.required_tokens, config.vocab_size)
        template = ChatTemplate.open(checkpoint, prompt_format.default_chat_template)
        limits = config.vocab_size, config.max_position_embeddings
        audio = cls.open_audio(checkpoint)
        return cls(tokenizer, template, *limits, special, prompt_format, slicing, config.query_num, checkpoint, audio)

    @staticmethod
    def open_audio(checkpoint: Path) -> AudioEncoding | None:
        """Return None: the models have no audio encoder."""
        return None

    def prompt_media(self, label: str, count: int, has_video: bool) -> "SlicedMedia":
        """Return the images and videos of a new prompt, of any number.

        As in the published usage, all images of a prompt with a video whose frames are images have no ids and fewer
        slices.
        """
        if not has_video or self.prompt_format.video_token:
            return SlicedMedia(self, self.slicing)
        fewer = min(self.prompt_format.video_max_slices, self.slicing.max_slice_nums)
        return SlicedMedia(self, self.slicing.model_copy(update={"max_slice_nums": fewer, "use_image_id": False}))

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module.

        `input_ids` int64 [1, tokens]; with an image `pixel_values` float32 [1, 3, patch, patch * patches],
        `target_sizes` int64 [slices, 2] in patches, and `image_bound` int64 [slices, 2] or `mm_token_type_ids` int32
        [1, tokens], as the prompt format selects. Frames of videos are images, so that the vision encoder runs once for
        both.
        """
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
        if inputs.frame_intervals and self.prompt_format.video_token:
            is_frame = tokens["input_ids"] == self.video_token_id
            image = self.special_tokens[self.prompt_format.image_token]
            tokens = {"input_ids": np.where(is_frame, image, tokens["input_ids"])}
        images: dict[str, NDArray[Any]] = {
            "pixel_values": self.slicing.pack_slices(inputs.slices)[None],
            "target_sizes": target_sizes(inputs.slices, self.slicing.patch_size),
        }
        if self.prompt_format.image_span_input == "bounds":
            images["image_bound"] = inputs.image_bounds
        elif self.prompt_format.image_span_input == "types":
            of_image = tokens["input_ids"] == self.special_tokens[self.prompt_format.image_token]
            images["mm_token_type_ids"] = of_image.astype(np.int32)
        return tokens | images

    @property
    def video_token_id(self) -> int:
        """Return the id of the placeholder of frames; see `placeholder_id`."""
        return placeholder_id(self.tokenizer, self.prompt_format.video_token, self.vocab_size)

    def image_text(self, grid: tuple[int, int] | None, counts: Sequence[int], number: int | None, token: str) -> str:
        """Return tags with `counts` tokens for the overview and each slice of `grid` (columns, rows).

        `number` is the index of the image in the chat, None for an image without an id.
        """
        overview, *parts = (token * count for count in counts)
        columns, _ = grid or (1, 0)
        if self.prompt_format.image_tags_for_slices:
            slices = _join_rows([f"<image>{part}</image>" for part in parts], columns)
            return f"<image>{overview}</image>" + (f"<slice>{slices}</slice>" if grid else "")
        tag = "" if number is None else f"<image_id>{number}</image_id>"
        return f"{tag}<image>{overview}</image>" + _join_rows([f"<slice>{part}</slice>" for part in parts], columns)

    def image_bounds(self, tokens: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
        """Return the begin and end of the tokens of every slice, which has `counts` tokens: int64 [slices, 2].

        Raises:
            CheckpointError: the prompt has other slices.
        """
        opened = (
            np.flatnonzero(np.isin(tokens, [self.special_tokens[tag] for tag in self.prompt_format.opening_tags])) + 1
        )
        closings = [self.special_tokens[tag.replace("<", "</")] for tag in self.prompt_format.opening_tags]
        closed = np.flatnonzero(np.isin(tokens, closings))
        if len(opened) != len(closed) or (closed - opened).tolist() != list(counts):
            raise CheckpointError(
                f"the rendered prompt has {len(opened)} of {len(counts)} slices with {list(counts)} image tokens",
                "compare `chat_template` with the published template",
            )
        return np.stack([opened, closed], axis=1)


@dataclass(frozen=True, slots=True)
class SlicedMedia:
    """The slices of the images and frames of one prompt."""

    processor: MiniCpmVProcessor
    slicing: Slicing  # of this prompt
    slices: list[NDArray[np.uint8]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # image tokens of every slice
    slices_per_image: list[int] = field(default_factory=list)
    frame_intervals: list[float] = field(default_factory=list)
    slice_times: Sequence[int] = ()  # the time of a frame is its place
    videos: list[str] = field(default_factory=list)  # labels

    def text(self, image: Image.Image) -> str:
        """Cut an image into slices, and return the tags with its tokens."""
        prompt_format = self.processor.prompt_format
        uses_id = prompt_format.uses_image_id and self.slicing.use_image_id
        number = self.frame_intervals.count(0.0) if uses_id else None
        return self._add(image, self.slicing, 0.0, number, prompt_format.image_token)

    def video_text(self, video: VideoFrames) -> str:
        """Sample a video, cut its frames into slices, and return the tags with their tokens."""
        prompt_format = self.processor.prompt_format
        if not prompt_format.video_token:
            indices, slicing = sample_image_frames(video), self.slicing
            separator, token, tag = prompt_format.content_separator, prompt_format.image_token, ""
        else:
            slicing = VideoSlicing.open_for(self.processor.folder, self.slicing)
            indices, separator, token = slicing.sample(video), "", prompt_format.video_token
            tag = self._video_tag()
        interval = video.count / video.fps / len(indices)
        frames = [self._add(frame, slicing, interval, None, token) for frame in video.read_equal(indices)]
        self.videos.append(video.label)
        return tag + separator.join(frames)

    def _video_tag(self) -> str:
        """Return the id of the next video, for a family whose videos have ids."""
        has_id = self.processor.prompt_format.video_has_id and self.slicing.use_image_id
        return f"<image_id>{len(self.videos)}</image_id>" if has_id else ""

    def _add(self, image: Image.Image, slicing: Slicing, interval: float, number: int | None, token: str) -> str:
        grid, parts = slice_image(image, slicing)
        counts = [slicing.num_tokens(part, self.processor.num_queries) for part in parts]
        self.slices.extend(parts)
        self.counts.extend(counts)
        self.slices_per_image.append(len(parts))
        self.frame_intervals.append(interval)
        return self.processor.image_text(grid, counts, number, token)

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of the tokens of every slice: int64 [slices, 2]."""
        return self.processor.image_bounds(tokens, self.counts)


def _join_rows(parts: Sequence[str], columns: int) -> str:
    return "\n".join("".join(parts[start : start + columns]) for start in range(0, len(parts), columns))


open_processor = MiniCpmVProcessor.open


def open_vision_inputs(folder: Path, prompt_format: PromptFormat) -> Slicing:
    """Open the slicing settings."""
    return SLICING_TYPES[prompt_format.slicing].open(folder)
