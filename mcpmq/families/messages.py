"""Messages of a chat: texts, images and audio in their order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mcpmq.system.audio_file import Waveform

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat: texts, RGB images and audio in their order."""

    role: Literal["system", "user", "assistant"]
    content: "tuple[str | Image.Image | Waveform, ...]"

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts in their order."""
        return tuple(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> "tuple[Image.Image, ...]":
        """Return the images in their order."""
        return tuple(part for part in self.content if not isinstance(part, str | Waveform))

    @property
    def audio(self) -> tuple[Waveform, ...]:
        """Return the audios in their order."""
        return tuple(part for part in self.content if isinstance(part, Waveform))


def template_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages for a chat template that iterates over the parts of a message."""
    return [{"role": one.role, "content": [_part(part) for part in one.content]} for one in messages]


def _part(part: "str | Image.Image | Waveform") -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "audio" if isinstance(part, Waveform) else "image"}


def template_messages(
    messages: Sequence[Message],
    image_text: "Callable[[Image.Image], str]",
    audio_text: Callable[[Waveform], str],
    separator: str,
) -> list[dict[str, str]]:
    """Return the messages for a chat template, in which images and audio are replaced by the text with their tokens."""

    def text(part: "str | Image.Image | Waveform") -> str:
        if isinstance(part, str):
            return part
        return audio_text(part) if isinstance(part, Waveform) else image_text(part)

    return [{"role": message.role, "content": separator.join(map(text, message.content))} for message in messages]
