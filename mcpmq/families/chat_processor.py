"""Encoding of samples and chats, the same in every family but for the text and the token spans of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from mcpmq.families.chat_template import ChatTemplate
from mcpmq.families.family import Inputs
from mcpmq.families.images import open_image
from mcpmq.families.messages import Message, template_messages
from mcpmq.families.prompt_format import PromptFormat
from mcpmq.families.tokenizer import check_special_tokens, check_tokens, token_ids

CHAT = "the chat"  # in messages


class PromptImages(Protocol):
    """The images of one prompt, in their order."""

    @property
    def slices(self) -> Sequence[NDArray[np.uint8]]:
        """Pixels of the slices, RGB [height, width, 3]."""

    def text(self, image: Image.Image) -> str:
        """Add an image, and return the text with its tokens."""

    def bounds(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the begin and end of the image tokens of every slice: int64 [slices, 2].

        Raises:
            CheckpointError: the chat template drops image tokens.
        """


@dataclass(frozen=True, slots=True)
class ChatProcessor(Protocol):
    """Encodes samples and chats with the tokenizer and the chat template of a checkpoint.

    A family defines `prompt_images`.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    vocab_size: int
    context_length: int
    special_tokens: Mapping[str, int]  # control tokens, not allowed in texts; token -> id
    prompt_format: PromptFormat

    def prompt_images(self, label: str, count: int) -> PromptImages:
        """Return the images of a new prompt, which will have `count`; `label` names the prompt.

        Raises:
            DatasetError: there are more images than the model accepts.
        """

    def encode(self, sample_id: str, image: Path | None, prompt: str, answer: str) -> Inputs:
        """Encode one sample; without an image the prompt has no image tags.

        Raises:
            DatasetError: the image is not valid or not accepted, a text contains a special token, or the sample is too
                long.
            CheckpointError: a token id is not below the vocabulary size, or the chat template drops image tokens.
        """
        label = f"sample `{sample_id}`"
        images = self.prompt_images(label, int(image is not None))
        check_special_tokens(label, self.special_tokens, prompt, answer)
        content = (open_image(sample_id, image), prompt) if image else (prompt,)
        answer += self.prompt_format.end_of_turn
        return replace(self._encode(label, [Message("user", content)], answer, images), id=sample_id)

    def encode_chat(self, messages: Sequence[Message]) -> Inputs:
        """Encode the prompt for the next message of a chat.

        Raises:
            DatasetError: a text contains a special token, there are more images than the model accepts, or the chat is
                too long.
            CheckpointError: a token id is not below the vocabulary size, or the chat template drops image tokens.
        """
        images = self.prompt_images(CHAT, sum(len(one.images) for one in messages))
        check_special_tokens(CHAT, self.special_tokens, *(text for one in messages for text in one.texts))
        return self._encode(CHAT, messages, "", images)

    def _encode(self, label: str, messages: Sequence[Message], answer: str, images: PromptImages) -> Inputs:
        rendered = template_messages(messages, images.text, self.prompt_format.content_separator)
        question = token_ids(self.tokenizer, self.template.render(rendered))
        tokens = np.array([*question, *token_ids(self.tokenizer, answer)], dtype=np.int64)
        check_tokens(label, tokens, self.vocab_size, self.context_length)
        return Inputs(label, tokens, len(question), tuple(images.slices), images.bounds(tokens))
