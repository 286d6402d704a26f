"""Model inputs of MiniCPM-V: image slices, tokens, and the image token spans."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_processor import ChatProcessor
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.inputs import Inputs
from mcpmq.families.preprocessor import check_consistent
from mcpmq.families.prompt_format import MINICPM_V_FORMAT, PromptFormat
from mcpmq.families.slicing import SLICING_TYPES, Slicing, slice_image, target_sizes
from mcpmq.families.tokenizer import open_tokenizer
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
        return cls(tokenizer, template, *limits, special, prompt_format, slicing, config.query_num)

    def prompt_images(self, label: str, count: int) -> "SlicedImages":
        """Return the images of a new prompt, of any number."""
        return SlicedImages(self)

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module.

        `input_ids` int64 [1, tokens]; with an image `pixel_values` float32 [1, 3, patch, patch * patches],
        `target_sizes` int64 [slices, 2] in patches, and `image_bound` int64 [slices, 2] or `mm_token_type_ids` int32
        [1, tokens], as the prompt format selects.
        """
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
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

    def image_text(self, grid: tuple[int, int] | None, counts: Sequence[int], number: int = 0) -> str:
        """Return tags with `counts` image tokens for the overview and each slice of `grid` (columns, rows).

        `number` is the index of the image in the chat.
        """
        overview, *parts = (self.prompt_format.image_token * count for count in counts)
        columns, _ = grid or (1, 0)
        if self.prompt_format.image_tags_for_slices:
            slices = _join_rows([f"<image>{part}</image>" for part in parts], columns)
            return f"<image>{overview}</image>" + (f"<slice>{slices}</slice>" if grid else "")
        uses_id = self.prompt_format.uses_image_id and self.slicing.use_image_id
        tag = f"<image_id>{number}</image_id>" if uses_id else ""
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
class SlicedImages:
    """The slices of the images of one prompt."""

    processor: MiniCpmVProcessor
    slices: list[NDArray[np.uint8]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # image tokens of every slice
    slices_per_image: list[int] = field(default_factory=list)

    def text(self, image: Image.Image) -> str:
        """Cut an image into slices, and return the tags with its tokens."""
        slicing = self.processor.slicing
        grid, parts = slice_image(image, slicing)
        of_image = [slicing.num_tokens(part, self.processor.num_queries) for part in parts]
        self.slices.extend(parts)
        self.counts.extend(of_image)
        self.slices_per_image.append(len(parts))
        return self.processor.image_text(grid, of_image, number=len(self.slices_per_image) - 1)

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of the tokens of every slice: int64 [slices, 2]."""
        return self.processor.image_bounds(tokens, self.counts)


def _join_rows(parts: Sequence[str], columns: int) -> str:
    return "\n".join("".join(parts[start : start + columns]) for start in range(0, len(parts), columns))


open_processor = MiniCpmVProcessor.open


def open_vision_inputs(folder: Path, prompt_format: PromptFormat) -> Slicing:
    """Open the slicing settings."""
    return SLICING_TYPES[prompt_format.slicing].open(folder)
