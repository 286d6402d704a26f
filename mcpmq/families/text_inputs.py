"""How a question and an answer become what a model is fed that reads text only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from tokenizers import Tokenizer

from mcpmq.errors import CalibrationError
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import Checked, checked
from mcpmq.families.family import Inputs
from mcpmq.families.prompt_format import Layout
from mcpmq.families.tokenizer import check_range, open_tokenizer, refuse_special
from mcpmq.system.json_file import read_json


class _Config(Checked):
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 32768


class NoPixels:
    """Of a model that does not see."""

    def graph_inputs(self, part: NDArray[np.uint8]) -> NoReturn:
        """There is no such graph."""
        raise CalibrationError("a model that reads text only was given an image", "measure it on text")

    def positions(self, inputs: Inputs) -> NDArray[np.int64]:
        """Tokens stand one after the other: int64 [length]."""
        return np.arange(len(inputs.tokens), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class TextProcessor:
    """Reads a checkpoint's own tokenizer and chat template; makes inputs of samples."""

    tokenizer: Tokenizer
    template: ChatTemplate
    vocabulary: int
    context: int
    special: Mapping[str, int]  # what no prompt may hold, with its token id
    end_of_turn: str

    @classmethod
    def open(cls, checkpoint: Path, end_of_turn: str) -> Self:
        """Read the text files of a checkpoint, or of anything written from it.

        Raises:
            CheckpointError: one is missing or broken.
        """
        config = checked(_Config, read_json(checkpoint / "config.json"))
        tokenizer, special = open_tokenizer(checkpoint, (end_of_turn,), config.vocab_size)
        template = ChatTemplate.open(checkpoint)
        return cls(tokenizer, template, config.vocab_size, config.max_position_embeddings, special, end_of_turn)

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs:
        """One sample as the model takes it.

        Raises:
            CalibrationError: it has an image, the text holds special tokens, or it is too long.
            CheckpointError: the tokenizer yields tokens that the model does not have.
        """
        if image is not None:
            raise CalibrationError(
                f"sample `{sample_id}` has an image, and the model reads text only", "give it a set of text alone"
            )
        refuse_special(sample_id, self.special, prompt, answer)
        question = self._tokens(self.template.render([{"role": "user", "content": prompt}]))
        tokens = np.array([*question, *self._tokens(answer + self.end_of_turn)], dtype=np.int64)
        check_range(sample_id, tokens, self.vocabulary, self.context)
        return Inputs(sample_id, tokens, len(question), (), np.empty((0, 2), np.int64))

    def arguments(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """What the native module's forward takes, by name: int64 token ids [1, tokens]."""
        return {"input_ids": inputs.tokens[None]}

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def open_processor(checkpoint: Path, layout: Layout) -> TextProcessor:
    """Of a layout only what ends a turn."""
    return TextProcessor.open(checkpoint, layout.end_of_turn)


def open_pixels(_: Path, __: Layout) -> NoPixels:
    """No file says anything of them."""
    return NoPixels()
