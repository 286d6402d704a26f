"""Tests of the conversion of tokens to text."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mcpmq.serving.text_stream import TextStream

CONTROL = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer with one token for every byte, and one control token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def _pieces(tokenizer: Tokenizer, ids: list[int], *stop: str) -> list[str]:
    stream = TextStream(tokenizer, {CONTROL}, stop)
    return [*map(stream.push, ids), stream.finish()]


def test_characters_are_whole(tokenizer: Tokenizer) -> None:
    """Characters of two to four bytes appear with their last byte."""
    text = "né 猫🙂!"

    pieces = _pieces(tokenizer, tokenizer.encode(text).ids)

    assert [piece for piece in pieces if piece] == ["n", "é", " ", "猫", "🙂", "!"]


def test_an_incomplete_character_at_the_end_is_marked(tokenizer: Tokenizer) -> None:
    """The first bytes of a character that does not end become a replacement character."""
    pieces = _pieces(tokenizer, tokenizer.encode("a🙂").ids[:-1])

    assert "".join(pieces).startswith("a\ufffd")


def test_control_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    """A control token within an answer is not shown."""
    assert "".join(_pieces(tokenizer, [*tokenizer.encode("ab").ids, CONTROL, *tokenizer.encode("c").ids])) == "abc"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one tw", ("two",), "one tw"),
        ("aaab", ("aab",), "a"),
        ("one", ("",), "one"),
        ("naïve 猫", ("猫",), "naïve "),
    ],
)
def test_stop_texts_end_the_text(tokenizer: Tokenizer, text: str, stop: tuple[str, ...], expected: str) -> None:
    """The text before the first stop text remains; the beginning of a stop text is held back, not lost."""
    stream = TextStream(tokenizer, set(), stop)
    shown = ""
    for token in tokenizer.encode(text).ids:
        shown += stream.push(token)
        if stream.stopped:
            break
    shown += stream.finish()

    assert shown == expected
    assert stream.stopped == (shown != text)


def test_random_texts_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    """The pieces of 50 random byte sequences that are text join to it."""
    numbers = random.Random(5)
    for _ in range(50):
        text = "".join(numbers.choice("ab é猫🙂\n") for _ in range(12))
        assert "".join(_pieces(tokenizer, tokenizer.encode(text).ids)) == text
