"""How a picture, a question and an answer become what a Qwen-VL is fed: one image of any size, and its tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt
from tokenizers import Tokenizer

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import Checked, checked
from mcpmq.families.family import Inputs
from mcpmq.families.images import open_image
from mcpmq.families.position_ids import sectioned_positions
from mcpmq.families.preprocessor import Deviations, Means, Preprocessor
from mcpmq.families.prompt_format import Layout
from mcpmq.families.tokenizer import check_range, open_tokenizer, refuse_special
from mcpmq.system.json_file import read_json

START, END = "<|vision_start|>", "<|vision_end|>"  # around an image
Pixels = NDArray[np.uint8]


class _Size(Checked):
    shortest_edge: PositiveInt = 56 * 56  # in spite of their names these are areas, in pixels
    longest_edge: PositiveInt = 28 * 28 * 1280


class Resizing(Preprocessor):
    """The part of preprocessor_config.json that decides the pixels."""

    merge_size: PositiveInt = Field(default=2, le=8)
    temporal_patch_size: PositiveInt = Field(default=2, le=8)
    image_mean: Means = (0.48145466, 0.4578275, 0.40821073)
    image_std: Deviations = (0.26862954, 0.26130258, 0.27577711)
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    size: _Size = _Size()

    @property
    def unit(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return self.patch_size * self.merge_size

    def grid(self, part: Pixels) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return part.shape[0] // self.unit, part.shape[1] // self.unit

    def graph_inputs(self, part: Pixels) -> dict[str, NDArray[Any]]:
        """One image: float32 [patches, 3 * frames * patch * patch], and int64 [1, 3], its frames, rows and columns."""
        rows, columns = (side * self.merge_size for side in self.grid(part))
        return {"pixel_values": self._patches(part), "grid_thw": np.array([[1, rows, columns]], np.int64)}

    def positions(self, inputs: Inputs) -> NDArray[np.int64]:
        """Time, row and column of every token: int64 [3, length]."""
        return sectioned_positions(len(inputs.tokens), inputs.image_bounds.tolist(), map(self.grid, inputs.slices))

    def resized(self, image: Image.Image) -> Pixels:
        """Bicubic on the 8-bit image, to sides of whole tokens and an area within the bounds."""
        width, height = self.best_size(image.width, image.height)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))

    def best_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, nearly in the image's ratio."""
        smallest, largest = self.min_pixels or self.size.shortest_edge, self.max_pixels or self.size.longest_edge
        sides = [round(side / self.unit) * self.unit for side in (width, height)]
        if math.prod(sides) > largest:
            shrink = math.sqrt(width * height / largest)
            sides = [max(math.floor(side / shrink / self.unit), 1) * self.unit for side in (width, height)]
        elif math.prod(sides) < smallest:
            grow = math.sqrt(smallest / (width * height))
            sides = [math.ceil(side * grow / self.unit) * self.unit for side in (width, height)]
        return sides[0], sides[1]

    def _patches(self, part: Pixels) -> NDArray[np.float32]:
        """Normalised patches, those of a token together, each repeated for every frame."""
        scaled = part.astype(np.float32) * np.float32(1 / 255) - np.array(self.image_mean, np.float32)
        pixels = scaled / np.array(self.image_std, np.float32)
        (rows, columns), merge, patch = self.grid(part), self.merge_size, self.patch_size
        split = pixels.reshape(rows, merge, patch, columns, merge, patch, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        frames = np.repeat(split[:, :, :, :, :, None], self.temporal_patch_size, axis=5)
        return np.ascontiguousarray(frames.reshape(rows * columns * merge**2, -1))


class _Config(Checked):
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 32768


@dataclass(frozen=True, slots=True)
class QwenVlProcessor:
    """Reads a checkpoint's own tokenizer, chat template and preprocessor settings; makes inputs of samples."""

    resizing: Resizing
    tokenizer: Tokenizer
    template: ChatTemplate
    vocabulary: int
    context: int
    special: Mapping[str, int]  # what no prompt may hold, with its token id
    layout: Layout

    @classmethod
    def open(cls, checkpoint: Path, layout: Layout) -> Self:
        """Read the text files of a checkpoint, or of anything written from it.

        Raises:
            CheckpointError: one is missing or broken.
        """
        raw = read_json(checkpoint / "config.json")
        config = checked(_Config, {**raw, **(raw.get("text_config") or {})})
        needed = START, layout.placeholder, END, layout.end_of_turn
        tokenizer, special = open_tokenizer(checkpoint, needed, config.vocab_size)
        template, resizing = ChatTemplate.open(checkpoint), Resizing.open(checkpoint)
        return cls(resizing, tokenizer, template, config.vocab_size, config.max_position_embeddings, special, layout)

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs:
        """One sample as the model takes it; without an image the prompt stands alone.

        Raises:
            CalibrationError: the image cannot be read, the text holds special tokens, or it is too long.
            CheckpointError: the tokenizer yields tokens that the model does not have.
        """
        refuse_special(sample_id, self.special, prompt, answer)
        slices = (self.resizing.resized(open_image(sample_id, image)),) if image else ()
        content = "".join(map(self._image_text, slices)) + prompt
        question = self._tokens(self.template.render([{"role": "user", "content": content}]))
        tokens = np.array([*question, *self._tokens(answer + self.layout.end_of_turn)], dtype=np.int64)
        check_range(sample_id, tokens, self.vocabulary, self.context)
        return Inputs(sample_id, tokens, len(question), slices, self._image_bounds(tokens, len(slices)))

    def arguments(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """What the native module's forward takes, by name: int64 token ids [1, tokens], and for an image its patches,
        their grid and int32 [1, tokens], 1 where a token is of the image."""
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
        patches = self.resizing.graph_inputs(inputs.slices[0])
        return tokens | {
            "pixel_values": patches["pixel_values"],
            "image_grid_thw": patches["grid_thw"],
            "mm_token_type_ids": (tokens["input_ids"] == self.special[self.layout.placeholder]).astype(np.int32),
        }

    def _image_text(self, part: Pixels) -> str:
        rows, columns = self.resizing.grid(part)
        return f"{START}{self.layout.placeholder * (rows * columns)}{END}"

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _image_bounds(self, tokens: NDArray[np.int64], images: int) -> NDArray[np.int64]:
        starts = np.flatnonzero(tokens == self.special[START]) + 1
        ends = np.flatnonzero(tokens == self.special[END])
        if len(starts) != images or len(ends) != images:
            raise CheckpointError(
                f"the chat template keeps {len(starts)} of {images} images",
                "compare `chat_template` with the published one",
            )
        return np.stack([starts, ends], axis=1)


open_processor = QwenVlProcessor.open


def open_pixels(folder: Path, _: Layout) -> Resizing:
    """Without the tokenizer."""
    return Resizing.open(folder)
