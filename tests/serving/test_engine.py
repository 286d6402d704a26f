"""Tests of the interface of chat engines."""

from PIL import Image

from mcpmq.serving.engine import Answer, Completion, Message, Piece, gather


def _answer() -> Answer:
    yield Piece("two ")
    yield Piece("circles")
    return Completion("stop", 7, 2, 10.0, 4.0)


def test_gather_joins_the_pieces_and_returns_the_end() -> None:
    """An answer of two pieces is one text, with the statistics that the generator returns."""
    text, end = gather(_answer())

    assert (text, end.finish_reason, end.prompt_tokens, end.completion_tokens) == ("two circles", "stop", 7, 2)
    assert end.tokens_per_second == 500.0


def test_an_answer_without_decoding_time_has_no_speed() -> None:
    """Zero milliseconds are zero tokens per second, not a division by zero."""
    assert Completion("length", 7, 1, 10.0, 0.0).tokens_per_second == 0.0


def test_images_keep_their_order_among_texts() -> None:
    """The images of a message are those of its content, in order."""
    first, second = Image.new("RGB", (2, 2)), Image.new("RGB", (3, 3))

    assert Message("user", (first, "then", second)).images == (first, second)
