"""Messages of a chat: texts, images, videos and audio in their order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mcpmq.families.video_frames import VideoFrames
from mcpmq.system.audio_file import Waveform

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat: texts, RGB images, videos and audio in their order."""

    role: Literal["system", "user", "assistant"]
    content: "tuple[str | Image.Image | VideoFrames | Waveform, ...]"

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts in their order."""
        return tuple(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> "tuple[Image.Image, ...]":
        """Return the images in their order."""
        return tuple(part for part in self.content if not isinstance(part, str | VideoFrames | Waveform))

    @property
    def videos(self) -> tuple[VideoFrames, ...]:
        """Return the videos in their order."""
        return tuple(part for part in self.content if isinstance(part, VideoFrames))

    @property
    def audio(self) -> tuple[Waveform, ...]:
        """Return the audios in their order."""
        return tuple(part for part in self.content if isinstance(part, Waveform))


def template_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages for a chat template that iterates over the parts of a message."""
    return [{"role": one.role, "content": [_part(part) for part in one.content]} for one in messages]


def _part(part: "str | Image.Image | VideoFrames | Waveform") -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "audio" if isinstance(part, Waveform) else "image"}


def template_messages(
    messages: Sequence[Message],
    media_text: "Callable[[Image.Image | VideoFrames], str]",
    audio_text: Callable[[Waveform], str],
    separator: str,
) -> list[dict[str, str]]:
    """Return the messages for a chat template, with the text of their tokens instead of images, videos and audio."""

    def text(part: "str | Image.Image | VideoFrames | Waveform") -> str:
        if isinstance(part, str):
            return part
        return audio_text(part) if isinstance(part, Waveform) else media_text(part)

    return [{"role": message.role, "content": separator.join(map(text, message.content))} for message in messages]
