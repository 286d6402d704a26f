"""Messages of a chat: texts and images in their order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat: texts and RGB images in their order."""

    role: Literal["system", "user", "assistant"]
    content: "tuple[str | Image.Image, ...]"

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts in their order."""
        return tuple(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> "tuple[Image.Image, ...]":
        """Return the images in their order."""
        return tuple(part for part in self.content if not isinstance(part, str))


def template_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages for a chat template that iterates over the parts of a message."""
    return [{"role": one.role, "content": [_part(part) for part in one.content]} for one in messages]


def _part(part: "str | Image.Image") -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def template_messages(
    messages: Sequence[Message], image_text: "Callable[[Image.Image], str]", separator: str
) -> list[dict[str, str]]:
    """Return the messages for a chat template, in which every image is replaced by the text with its tokens."""
    return [
        {
            "role": message.role,
            "content": separator.join(part if isinstance(part, str) else image_text(part) for part in message.content),
        }
        for message in messages
    ]
