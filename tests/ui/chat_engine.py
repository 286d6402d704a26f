"""A chat engine for tests of the terminal: it describes the chat, or answers without end."""

import sys
import time
from collections.abc import Sequence

from mcpmq.errors import DatasetError
from mcpmq.serving.engine import Answer, Completion, Message, Piece, Sampling


class DescribingEngine:
    """Answers with the roles and images of the chat; to `endless`, with words until it is closed."""

    label, context_length, has_vision, has_audio = "Test 1.0", 64, True, True

    def generate(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """Yield the description."""
        [text] = messages[-1].texts
        if text == "long":
            raise DatasetError("the chat has 99 tokens", "start a new chat")
        while text == "endless":
            yield Piece("word ")
            time.sleep(0.005)
        roles = " ".join(f"{one.role[0]}{len(one.images)}" for one in messages)
        yield Piece(f"<{roles}>")
        yield Piece(f" {text}\x1b[2J")
        return Completion("stop", 5, 2, 10.0, 4.0, ("differs",))

    def close(self) -> None:
        """Do nothing."""


if __name__ == "__main__":
    import fcntl
    import termios

    from mcpmq.system.interruption import exit_on_signals, run_until_signal
    from mcpmq.ui.chat import run_chat

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C in the pseudo-terminal becomes a signal of this process
    exit_on_signals()
    run_until_signal(lambda: run_chat(DescribingEngine(), Sampling(), []))
    sys.stdout.write("left\n")
