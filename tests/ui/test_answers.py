"""Tests of printed answers."""

import json

import pytest

from mcpmq.serving.engine import Completion, Message, Sampling
from mcpmq.ui.answers import print_answer, statistics
from tests.ui.chat_engine import DescribingEngine

CHAT = [Message("user", ("hello",))]


def test_an_answer_is_escaped_and_ends_with_a_line_feed(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences of a model do not reach the terminal; notes go to stderr."""
    print_answer(DescribingEngine(), CHAT, Sampling(), load_ms=1.0, as_json=False)

    captured = capsys.readouterr()
    assert captured.out == "<u0> hello\\u001b[2J\n"
    assert captured.err == "note: differs\n"


def test_json_has_the_whole_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON has the text unchanged, and nothing else is on stdout."""
    print_answer(DescribingEngine(), CHAT, Sampling(), load_ms=1.26, as_json=True)

    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["answer"] == "<u0> hello\x1b[2J"
    assert (data["load_ms"], data["prompt_ms"], data["tokens_per_second"]) == (1.3, 10.0, 500.0)
    assert data["notes"] == ["differs"]
    assert data["first_text_ms"] >= 0
    assert captured.err == ""


def test_statistics_are_one_line() -> None:
    """Tokens, time of the prompt, speed, and the limit if it ended the answer."""
    assert statistics(Completion("stop", 1234, 20, 1500.0, 500.0)) == "1,234 + 20 tokens, prompt 1.5 s, 40.0 tokens/s"
    assert statistics(Completion("length", 1, 2, 0.0, 0.0)).endswith("0.0 tokens/s, ended by the limit of tokens")
