"""Tests of the chat: its history, its commands, and Ctrl-C in a pseudo-terminal."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mcpmq.errors import DatasetError, McpmqError
from mcpmq.serving.engine import Sampling
from mcpmq.system.audio_file import Waveform
from mcpmq.ui.chat import Chat
from tests.audio_tools import write_wav
from tests.ui.chat_engine import DescribingEngine

SECONDS = 30


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small image."""
    Image.new("RGB", (8, 6)).save(tmp_path / "small.png")
    return tmp_path / "small.png"


@pytest.fixture
def chat() -> Chat:
    """A new chat."""
    return Chat(DescribingEngine(), Sampling())


def test_messages_and_answers_are_the_history(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    """The second message is sent with the first and its answer; control codes of the model are escaped."""
    chat.handle("one")
    chat.handle("two")

    captured = capsys.readouterr()
    assert captured.out == "<u0> one\\u001b[2J\n<u0 a0 u0> two\\u001b[2J\n"
    assert captured.err.count("note: differs") == 1
    assert [one.role for one in chat.messages] == ["user", "assistant"] * 2


def test_images_are_of_the_next_message(chat: Chat, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two images are sent with one message, and stay in the history."""
    chat.handle(f"/image {image}")
    chat.handle(f"/image {image}")
    chat.handle("one")
    chat.handle("two")

    captured = capsys.readouterr()
    assert "<u2> one" in captured.out
    assert "<u2 a0 u0> two" in captured.out
    assert "image 8 x 6" in captured.err


def test_audio_is_of_the_next_message(chat: Chat, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Audio and an image are sent with one message in their order."""
    chat.handle(f"/audio {write_wav(image.with_name('noise.wav'), seconds=0.5)}")
    chat.handle(f"/image {image}")
    chat.handle("one")
    chat.handle("two")

    first, _, third, _ = chat.messages
    assert [type(part) for part in first.content] == [Waveform, Image.Image, str]
    assert third.content == ("two",)
    assert "audio of 0.5 seconds" in capsys.readouterr().err


def test_clear_begins_a_new_chat(chat: Chat, image: Path) -> None:
    """History and images are forgotten."""
    chat.handle("one")
    chat.handle(f"/image {image}")
    chat.handle("/clear")

    assert chat.messages == chat.media == []


def test_errors_keep_the_history(chat: Chat, tmp_path: Path) -> None:
    """A message that is too long, an unknown command and a missing image change nothing."""
    chat.handle("one")
    missing = f"/image {tmp_path / 'none.png'}"
    for line, error in (("long", DatasetError), ("/foo", McpmqError), (missing, DatasetError)):
        with pytest.raises(error):
            chat.handle(line)

    assert [one.texts for one in chat.messages] == [("one",), ("<u0> one\x1b[2J",)]
    assert chat.media == []


def test_exit_ends_the_chat(chat: Chat) -> None:
    """`/exit` is the end of the input; empty lines and `/help` are not."""
    chat.handle("  ")
    chat.handle("/help")
    with pytest.raises(EOFError):
        chat.handle("/exit")


class _Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self) -> None:
        self._terminal, program = pty.openpty()
        streams = {"stdin": program, "stdout": program, "stderr": program}
        variables = {**os.environ, "TERM": "xterm"}
        command = [sys.executable, "-m", "tests.ui.chat_engine"]
        self.process = subprocess.Popen(command, **streams, env=variables, start_new_session=True)  # type: ignore[call-overload]
        os.close(program)
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def expect(self, text: str) -> str:
        """Return the output up to a text."""
        deadline = time.monotonic() + SECONDS
        while text not in self._unread and time.monotonic() < deadline:
            if select.select([self._terminal], [], [], 0.2)[0]:
                self._unread += os.read(self._terminal, 4096).decode()
        found, separator, self._unread = self._unread.partition(text)
        assert separator, (text, found)
        return found

    def interrupt_prompt(self, text: str) -> None:
        """Press Ctrl-C until a text is printed.

        The `input` of CPython misses a signal between the output of its prompt and its wait for a key.
        """
        for _ in range(SECONDS):
            self.type("\x03")
            if select.select([self._terminal], [], [], 1.0)[0]:
                break
        self.expect(text)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.fixture
def terminal() -> Iterator[_Terminal]:
    """A chat in a pseudo-terminal."""
    opened = _Terminal()
    yield opened
    opened.close()


def test_ctrl_c_stops_the_answer_only(terminal: _Terminal, image: Path) -> None:
    """The chat goes on with the part of the answer in its history; Ctrl-D ends it with code 0."""
    terminal.expect("> ")
    terminal.type(f"/image {image}\n")
    terminal.expect("> ")
    terminal.type("first\n")
    terminal.expect("<u1> first")
    terminal.expect("500.0 tokens/s")
    terminal.expect("> ")
    terminal.type("endless\n")
    terminal.expect("word word ")
    terminal.type("\x03")
    terminal.expect("stopped; Ctrl-D ends the chat\r\n> ")
    terminal.type("second\n")
    terminal.expect("<u1 a0 u0 a0 u0> second")
    terminal.expect("> ")
    terminal.interrupt_prompt("stopped; Ctrl-D ends the chat\r\n> ")
    terminal.type("\x04")
    terminal.expect("left")
    assert terminal.process.wait(SECONDS) == 0
