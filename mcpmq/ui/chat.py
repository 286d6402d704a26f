"""An interactive chat in the terminal, with history, images, videos and audio."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mcpmq.errors import McpmqError
from mcpmq.families.video_frames import VideoFrames, read_video
from mcpmq.serving.engine import ChatEngine, Message, Sampling
from mcpmq.system.audio_file import Waveform, read_audio
from mcpmq.system.image_file import read_image
from mcpmq.system.interruption import keyboard_interrupts
from mcpmq.ui.answers import print_notes, statistics, stream_answer
from mcpmq.ui.terminal import print_error, print_notice

PROMPT = "> "
HELP = (
    "/image FILE adds an image, /video FILE a video, /audio FILE audio, /clear begins a new chat, /exit or Ctrl-D ends;"
    " Ctrl-C stops an answer"
)


@dataclass(slots=True)
class Chat:
    """The messages of a chat, and the images, videos and audio of the next message."""

    engine: ChatEngine
    sampling: Sampling
    media: list[Image.Image | VideoFrames | Waveform] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    shown_notes: set[str] = field(default_factory=set)

    def handle(self, line: str) -> None:
        """Run a command or answer a message.

        Raises:
            EOFError: the user ends the chat.
            KeyboardInterrupt: Ctrl-C; the part of the answer before it stays in the history.
            McpmqError: a command or a message is not valid; the history is unchanged.
        """
        name, _, argument = line.strip().partition(" ")
        if not name:
            return
        if not name.startswith("/"):
            self._answer(line)
        elif name in COMMANDS:
            COMMANDS[name](self, argument.strip())
        else:
            raise McpmqError(f"`{name}` is not a command", HELP)

    def _answer(self, text: str) -> None:
        messages = [*self.messages, Message("user", (*self.media, text))]
        received: list[str] = []
        try:
            printed = stream_answer(self.engine, messages, self.sampling, received, show=True)
        except McpmqError:
            self.media.clear()
            raise
        except KeyboardInterrupt:
            self._remember(messages, received)
            raise
        self._remember(messages, received)
        sys.stdout.write("\n")
        print_notes([note for note in printed.end.notes if note not in self.shown_notes])
        self.shown_notes.update(printed.end.notes)
        print_notice(statistics(printed.end))

    def _remember(self, messages: Sequence[Message], received: Sequence[str]) -> None:
        self.messages[:] = [*messages, Message("assistant", ("".join(received),))]
        self.media.clear()

    def add_image(self, file: str) -> None:
        """Read an image for the next message."""
        image = read_image(Path(file).expanduser(), "/image")
        self.media.append(image)
        print_notice(f"image {image.width} x {image.height}, for the next message")

    def add_video(self, file: str) -> None:
        """Open a video file or a folder of frames for the next message."""
        video = read_video(Path(file).expanduser(), "/video")
        self.media.append(video)
        print_notice(f"video of {video.count:,} frames, for the next message")

    def add_audio(self, file: str) -> None:
        """Read audio for the next message."""
        audio = read_audio(Path(file).expanduser(), "/audio")
        self.media.append(audio)
        print_notice(f"audio of {audio.stored.seconds:.1f} seconds, for the next message")

    def clear(self, _: str) -> None:
        """Forget the history, and the images, videos and audio of the next message."""
        self.messages.clear()
        self.media.clear()
        print_notice("new chat")

    def leave(self, _: str) -> None:
        """End the chat."""
        raise EOFError


COMMANDS: Mapping[str, Callable[[Chat, str], None]] = {
    "/image": Chat.add_image,
    "/video": Chat.add_video,
    "/audio": Chat.add_audio,
    "/clear": Chat.clear,
    "/exit": Chat.leave,
    "/help": lambda _, __: print_notice(HELP),
}


def run_chat(engine: ChatEngine, sampling: Sampling, media: Sequence[Image.Image | VideoFrames | Waveform]) -> None:
    """Read messages from the terminal and print the answers, until Ctrl-D or `/exit`."""
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` then edits lines and recalls earlier ones
    chat = Chat(engine, sampling, list(media))
    print_notice(f"{engine.label}, context of {engine.context_length:,} tokens. {HELP}")
    with keyboard_interrupts():
        while _take_turn(chat):
            pass


def _take_turn(chat: Chat) -> bool:
    """Read and handle one line; return False at the end of the chat."""
    try:
        chat.handle(input(PROMPT))
    except EOFError:
        return False
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        print_notice("stopped; Ctrl-D ends the chat")
    except McpmqError as error:
        print_error(error)
    return True
