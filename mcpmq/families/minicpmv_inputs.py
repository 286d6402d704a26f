"""How a picture, a question and an answer become what a MiniCPM-V is fed: slices, tokens, and where they meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from tokenizers import Tokenizer

from mcpmq.errors import CheckpointError
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import Checked, checked
from mcpmq.families.family import Inputs
from mcpmq.families.images import open_image
from mcpmq.families.prompt_format import SINCE_2_6, Layout
from mcpmq.families.slicing import SLICINGS, Slicing, refuse_contradiction, slice_image, target_sizes
from mcpmq.families.tokenizer import check_range, open_tokenizer, refuse_special
from mcpmq.system.json_file import read_json


class _Config(Checked):
    vocab_size: PositiveInt
    query_num: PositiveInt = Field(default=64, le=4096)
    max_position_embeddings: PositiveInt = 32768
    patch_size: PositiveInt = 14


@dataclass(frozen=True, slots=True)
class MiniCpmVProcessor:
    """Reads a checkpoint's own tokenizer, chat template and preprocessor settings; makes inputs of samples."""

    slicing: Slicing
    tokenizer: Tokenizer
    template: ChatTemplate
    queries: int  # image tokens a slice becomes
    vocabulary: int
    context: int
    special: Mapping[str, int]  # what no prompt may hold, with its token id
    layout: Layout = SINCE_2_6

    @classmethod
    def open(cls, checkpoint: Path, layout: Layout = SINCE_2_6) -> Self:
        """Read the text files of a checkpoint, or of anything written from it.

        Raises:
            CheckpointError: one is missing, broken, or contradicts another.
        """
        raw, slicing = read_json(checkpoint / "config.json"), open_pixels(checkpoint, layout)
        config = checked(_Config, {**raw, **(raw.get("text_config") or {})})
        refuse_contradiction("patch_size", config.patch_size, slicing.patch_size)
        refuse_contradiction("query_num", config.query_num, slicing.image_feature_size or config.query_num)
        tokenizer, special = open_tokenizer(checkpoint, layout.needed, config.vocab_size)
        return cls(
            slicing,
            tokenizer,
            ChatTemplate.open(checkpoint, layout.template),
            config.query_num,
            config.vocab_size,
            config.max_position_embeddings,
            special,
            layout,
        )

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs:
        """One sample as the model takes it; without an image the prompt stands alone.

        Raises:
            CalibrationError: the image cannot be read, the text holds special tokens, or it is too long.
            CheckpointError: the tokenizer yields tokens that the model does not have.
        """
        refuse_special(sample_id, self.special, prompt, answer)
        grid, slices = slice_image(open_image(sample_id, image), self.slicing) if image else (None, ())
        counts = [self.slicing.tokens_of(part, self.queries) for part in slices]
        content = f"{self.image_text(grid, counts)}\n{prompt}" if slices else prompt
        question = self._tokens(self.template.render([{"role": "user", "content": content}]))
        tokens = np.array([*question, *self._tokens(answer + self.layout.end_of_turn)], dtype=np.int64)
        check_range(sample_id, tokens, self.vocabulary, self.context)
        return Inputs(sample_id, tokens, len(question), slices, self._image_bounds(tokens, counts))

    def arguments(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """What the native module's forward takes, by name: int64 token ids [1, tokens], and for an image float32 pixels
        [1, 3, patch, patch * patches], int64 target sizes [slices, 2] and int64 image bounds [slices, 2]."""
        tokens: dict[str, NDArray[Any]] = {"input_ids": inputs.tokens[None]}
        if not inputs.slices:
            return tokens
        images: dict[str, NDArray[Any]] = {
            "pixel_values": self.slicing.packed(inputs.slices)[None],
            "target_sizes": target_sizes(inputs.slices, self.slicing.patch_size),
        }
        if self.layout.extra == "bounds":
            images["image_bound"] = inputs.image_bounds
        elif self.layout.extra == "types":
            of_image = tokens["input_ids"] == self.special[self.layout.placeholder]
            images["mm_token_type_ids"] = of_image.astype(np.int32)
        return tokens | images

    def image_text(self, grid: tuple[int, int] | None, counts: Sequence[int]) -> str:
        """Placeholders for the `counts` tokens of the overview, and of `grid` (columns, rows) slices row by row."""
        overview, *parts = (self.layout.placeholder * count for count in counts)
        columns, _ = grid or (1, 0)
        if self.layout.slices_as_images:
            slices = _lines([f"<image>{part}</image>" for part in parts], columns)
            return f"<image>{overview}</image>" + (f"<slice>{slices}</slice>" if grid else "")
        number = "<image_id>0</image_id>" if self.layout.numbered and self.slicing.use_image_id else ""
        return f"{number}<image>{overview}</image>" + _lines([f"<slice>{part}</slice>" for part in parts], columns)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _image_bounds(self, tokens: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
        opened = np.flatnonzero(np.isin(tokens, [self.special[tag] for tag in self.layout.opening])) + 1
        closings = [self.special[tag.replace("<", "</")] for tag in self.layout.opening]
        closed = np.flatnonzero(np.isin(tokens, closings))
        if len(opened) != len(closed) or (closed - opened).tolist() != list(counts):
            raise CheckpointError(
                f"the chat template keeps {len(opened)} of {len(counts)} slices, of {list(counts)} tokens",
                "compare `chat_template` with the published one",
            )
        return np.stack([opened, closed], axis=1)


def _lines(parts: Sequence[str], columns: int) -> str:
    return "\n".join("".join(parts[start : start + columns]) for start in range(0, len(parts), columns))


open_processor = MiniCpmVProcessor.open


def open_pixels(folder: Path, layout: Layout) -> Slicing:
    """Without the tokenizer."""
    return SLICINGS[layout.slicing].open(folder)
