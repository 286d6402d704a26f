"""Model inputs of a text-only model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from tokenizers import Tokenizer

from mcpmq.errors import DatasetError
from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.config_schema import ConfigSchema, validate_config
from mcpmq.families.family import Inputs
from mcpmq.families.messages import Message
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tokenizer import check_special_tokens, check_tokens, open_tokenizer, token_ids
from mcpmq.system.json_file import read_json


class _Config(ConfigSchema):
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 32768


class NoVisionInputs:
    """Position ids of a text-only model."""

    def graph_inputs(self, pixels: NDArray[np.uint8]) -> NoReturn:
        """Raise an error: the model has no vision graph."""
        raise DatasetError("the sample has an image, but the model is text-only", "use a text-only dataset")

    def position_ids(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return 0, 1, 2, ...: int64 [length]."""
        return np.arange(len(inputs.tokens), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class TextProcessor:
    """Encodes samples with the tokenizer and the chat template of a checkpoint."""

    tokenizer: Tokenizer
    template: ChatTemplate
    vocab_size: int
    context_length: int
    special_tokens: Mapping[str, int]  # control tokens, not allowed in texts; token -> id
    end_of_turn: str

    @classmethod
    def open(cls, checkpoint: Path, end_of_turn: str) -> Self:
        """Open the text files of a checkpoint or an artifact.

        Raises:
            CheckpointError: a file is missing or invalid.
        """
        config = validate_config(_Config, read_json(checkpoint / "config.json"))
        tokenizer, special = open_tokenizer(checkpoint, (end_of_turn,), config.vocab_size)
        template = ChatTemplate.open(checkpoint)
        return cls(tokenizer, template, config.vocab_size, config.max_position_embeddings, special, end_of_turn)

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs:
        """Encode one sample.

        Raises:
            DatasetError: the sample has an image, contains a special token, or is too long.
            CheckpointError: a token id is not below the vocabulary size.
        """
        if image is not None:
            raise DatasetError(
                f"sample `{sample_id}` has an image, but the model is text-only", "use a text-only dataset"
            )
        label = f"sample `{sample_id}`"
        check_special_tokens(label, self.special_tokens, prompt, answer)
        return replace(self._encode(label, [Message("user", (prompt,))], answer + self.end_of_turn), id=sample_id)

    def encode_chat(self, messages: Sequence[Message]) -> Inputs:
        """Encode the prompt for the next message of a chat.

        Raises:
            DatasetError: the chat has an image, contains a special token, or is too long.
            CheckpointError: a token id is not below the vocabulary size.
        """
        if any(message.images for message in messages):
            raise DatasetError("the chat has an image, but the model is text-only", "ask without an image")
        check_special_tokens("the chat", self.special_tokens, *(text for one in messages for text in one.texts))
        return self._encode("the chat", messages, "")

    def _encode(self, label: str, messages: Sequence[Message], answer: str) -> Inputs:
        prompt = self.template.render([{"role": one.role, "content": "".join(one.texts)} for one in messages])
        question = token_ids(self.tokenizer, prompt)
        tokens = np.array([*question, *token_ids(self.tokenizer, answer)], dtype=np.int64)
        check_tokens(label, tokens, self.vocab_size, self.context_length)
        return Inputs(label, tokens, len(question), (), np.empty((0, 2), np.int64))

    def model_inputs(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the forward arguments of the torch module: `input_ids`, int64 [1, tokens]."""
        return {"input_ids": inputs.tokens[None]}


def open_processor(checkpoint: Path, prompt_format: PromptFormat) -> TextProcessor:
    """Open the processor; only the end-of-turn token of the prompt format is used."""
    return TextProcessor.open(checkpoint, prompt_format.end_of_turn)


def open_vision_inputs(_: Path, __: PromptFormat) -> NoVisionInputs:
    """Return the position ids; they need no file."""
    return NoVisionInputs()
