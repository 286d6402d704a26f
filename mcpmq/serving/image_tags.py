"""Texts around images that llama.cpp does not add: the number of an image, and the separator of the family."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TypeVar

from mcpmq.families.prompt_format import PromptFormat
from mcpmq.system.audio_file import Waveform

Image = TypeVar("Image")  # or audio


def with_image_tags(contents: Sequence[Sequence[str | Image]], prompt_format: PromptFormat) -> list[list[str | Image]]:
    """Return the parts of every message of a chat with the tags that the family's processor puts around images.

    Texts and other parts alternate, so that the separator of llama.cpp between two texts is not added.
    """
    numbers = count()
    return [list(_alternating(content, prompt_format, numbers)) for content in contents]


def _alternating(
    content: Sequence[str | Image], prompt_format: PromptFormat, numbers: Iterator[int]
) -> Iterator[str | Image]:
    text = ""
    for index, part in enumerate(content):
        text += prompt_format.content_separator if index else ""
        if isinstance(part, str):
            text += part
            continue
        has_id = prompt_format.uses_image_id and not isinstance(part, Waveform)
        if text := text + (f"<image_id>{next(numbers)}</image_id>" if has_id else ""):
            yield text
        yield part
        text = ""
    if text:
        yield text
