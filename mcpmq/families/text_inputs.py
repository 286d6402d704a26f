"""Model inputs of a text-only model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt

from mcpmq.errors import DatasetError
from mcpmq.families.chat_processor import CHAT, ChatProcessor
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.inputs import Inputs
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tokenizer import open_tokenizer
from mcpmq.families.video_frames import VideoFrames
from mcpmq.system.json_file import read_json


class _Config(ConfigSchema):
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 32768


class NoVisionInputs:
    """Position ids of a text-only model."""

    def graph_inputs(self, pixels: NDArray[np.uint8]) -> NoReturn:
        """Raise an error: the model has no vision graph."""
        raise DatasetError("the sample has an image, but the model is text-only", "use a text-only dataset")

    def image_tokens(self, width: int, height: int, num_queries: int) -> NoReturn:
        """Raise an error: the model has no images."""
        raise AssertionError("the model has no vision encoder")

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return 0, 1, 2, ...: int64 [length]."""
        return np.arange(len(inputs.tokens), dtype=np.int64)


class NoMedia:
    """The images and videos of a prompt for a text-only model: none."""

    slices: Sequence[NDArray[np.uint8]] = ()
    slices_per_image: Sequence[int] = ()
    frame_intervals: Sequence[float] = ()
    slice_times: Sequence[int] = ()

    def text(self, image: Image.Image) -> NoReturn:
        """Raise an error: the number of images is checked before."""
        raise AssertionError("the prompt has no image")

    def video_text(self, video: VideoFrames) -> NoReturn:
        """Raise an error: the number of videos is checked before."""
        raise AssertionError("the prompt has no video")

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return an empty array, int64 [0, 2]."""
        return np.empty((0, 2), np.int64)


@dataclass(frozen=True, slots=True)
class TextProcessor(ChatProcessor):
    """Encodes texts with the tokenizer and the chat template of a checkpoint."""

    @classmethod
    def open(cls, checkpoint: Path, prompt_format: PromptFormat) -> Self:
        """Open the text files of a checkpoint or an artifact; only the end-of-turn token of the format is used.

        Raises:
            CheckpointError: a file is missing or invalid.
        """
        config = validate_config(_Config, read_json(checkpoint / "config.json"))
        tokenizer, special = open_tokenizer(checkpoint, (prompt_format.end_of_turn,), config.vocab_size)
        text_format = replace(prompt_format, content_separator="")
        template = ChatTemplate.open(checkpoint)
        return cls(tokenizer, template, config.vocab_size, config.max_position_embeddings, special, text_format)

    def prompt_media(self, label: str, count: int, has_video: bool) -> NoMedia:
        """Return no images and videos.

        Raises:
            DatasetError: the prompt has one.
        """
        if count:
            hint = "ask without an image" if label == CHAT else "use a text-only dataset"
            found = "a video" if has_video else "an image"
            raise DatasetError(f"{label} has {found}, but the model is text-only", hint)
        return NoMedia()

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module: `input_ids`, int64 [1, tokens]."""
        return {"input_ids": inputs.tokens[None]}


open_processor = TextProcessor.open


def open_vision_inputs(_: Path, __: PromptFormat) -> NoVisionInputs:
    """Return the position ids; they need no file."""
    return NoVisionInputs()
