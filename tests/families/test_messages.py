"""Tests of chats with several images and turns in the processors of all families."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from mcpmq.checkpoint import Checkpoint
from mcpmq.dataset import Turn
from mcpmq.errors import DatasetError
from mcpmq.families.messages import Message

ANSWERS = ("Où? Two\nsigns.", "é", "Only one.")


def _image(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_a_chat_has_the_tokens_and_pixels_of_its_samples(family_checkpoint: Checkpoint) -> None:
    """A chat of one message is the prompt of a sample; two images give the slices of both, each in its span."""
    processor = family_checkpoint.family.open_processor(family_checkpoint.path)
    text = processor.encode("text", None, "How many?", "three")
    assert (processor.encode_chat([Message("user", ("How many?",))]).tokens == text.tokens[: text.answer_start]).all()
    images = (_image(1, 56, 56), _image(2, 150, 90))
    if not family_checkpoint.family.has_vision:
        with pytest.raises(DatasetError, match="the model is text-only"):
            processor.encode_chat([Message("user", (images[0], "How many?"))])
        return
    singles = [processor.encode_chat([Message("user", (image, "How many?"))]) for image in images]
    chat = [Message("user", (images[0], "How many?")), Message("assistant", ("three",))]
    both = [*chat, Message("user", (images[1], "How many?"))]

    inputs = processor.encode_chat(both)

    expected = [part for single in singles for part in single.slices]
    assert all((one == other).all() for one, other in zip(inputs.slices, expected, strict=True))
    lengths = [length for single in singles for length in np.diff(single.image_bounds)[:, 0].tolist()]
    assert np.diff(inputs.image_bounds)[:, 0].tolist() == lengths
    assert inputs.answer_start == len(inputs.tokens)
    first = singles[0].answer_start
    assert (inputs.tokens[: first - 1] == singles[0].tokens[: first - 1]).all()
    arguments = processor.model_inputs(inputs)
    assert arguments["input_ids"].shape == (1, len(inputs.tokens))


def test_texts_and_images_keep_their_order() -> None:
    """The parts of a message by type."""
    image = _image(0, 4, 4)
    message = Message("user", ("a", image, "b"))

    assert (message.texts, message.images) == (("a", "b"), (image,))


def _text(tokenizer: Tokenizer, tokens: NDArray[np.int64]) -> str:
    """Decode tokens, also of SentencePiece tokenizers without a decoder."""
    if tokenizer.decoder is not None:
        return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))
    pieces = [tokenizer.id_to_token(token) for token in tokens.tolist()]
    joined = "".join(map(str, pieces)).replace("\u2581", " ").lstrip().encode()
    return re.sub(rb"<0x(..)>", lambda found: bytes.fromhex(found[1].decode()), joined).decode()


def test_every_answer_of_a_conversation_is_measured(family_checkpoint: Checkpoint) -> None:
    """The measured tokens are the answers, each with the end of its turn if the template writes it."""
    processor = family_checkpoint.family.open_processor(family_checkpoint.path)
    turns = [turn for text in ANSWERS for turn in (Turn("user", ("How many?",)), Turn("assistant", (text,)))]
    prompt_format = family_checkpoint.family.prompt_format
    end, answers = prompt_format.end_of_turn, [prompt_format.answer_prefix + answer for answer in ANSWERS]

    inputs = processor.encode_turns("chat", turns)

    texts = [_text(processor.tokenizer, inputs.tokens[start:stop]) for start, stop in inputs.answer_spans]
    writes_end = family_checkpoint.family.name != "minicpm-v-2.0"
    assert texts == [*(answer + end * writes_end for answer in answers[:-1]), answers[-1] + end]
    lengths = [stop - start for start, stop in inputs.answer_spans]
    assert len(inputs.answer_tokens) == len(inputs.measured) == sum(lengths)
    assert inputs.answer_tokens.tolist()[-lengths[-1] :] == inputs.tokens[inputs.answer_start :].tolist()


def test_a_system_prompt_is_in_the_prompt(family_checkpoint: Checkpoint) -> None:
    """It replaces the default one; a model without system prompts rejects it."""
    processor = family_checkpoint.family.open_processor(family_checkpoint.path)
    turns = [Turn("system", ("Be brief.",)), Turn("user", ("How many?",)), Turn("assistant", ("Two.",))]
    if not family_checkpoint.family.prompt_format.has_system_prompt:
        with pytest.raises(DatasetError, match="sample `chat` has a system prompt, but the model has none"):
            processor.encode_turns("chat", turns)
        return

    tokens = processor.encode_turns("chat", turns).tokens

    text = _text(processor.tokenizer, tokens)
    assert text.count("Be brief.") == 1
    assert "helpful assistant" not in text
