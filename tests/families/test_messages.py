"""Tests of chats with several images and turns in the processors of all families."""

import numpy as np
import pytest
from PIL import Image

from mcpmq.checkpoint import Checkpoint
from mcpmq.errors import DatasetError
from mcpmq.families.messages import Message


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
    if family_checkpoint.family.prompt_format.slicing == "canvas":
        with pytest.raises(DatasetError, match="2 images; the model accepts one"):
            processor.encode_chat(both)
        return

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
