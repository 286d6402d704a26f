"""Samples: conversations of texts and images that end with an answer."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from mcpmq.errors import DatasetError

Role = Literal["system", "user", "assistant"]
FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """The bytes of an image file that is stored inside of a dataset file."""

    name: str  # its place in the dataset file, for errors
    content: bytes


ImageSource = Path | EmbeddedImage


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: texts and images in their order."""

    role: Role
    content: tuple[str | ImageSource, ...]

    @property
    def text(self) -> str:
        """Return the texts, one line each."""
        return "\n".join(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Return the images in their order."""
        return tuple(part for part in self.content if not isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation: at most one system prompt, then turns of user and assistant; the last one is an answer."""

    id: str
    turns: tuple[Turn, ...]
    tags: tuple[str, ...] = ()

    @classmethod
    def from_prompt(
        cls, sample_id: str, image: ImageSource | None, prompt: str, answer: str, tags: tuple[str, ...] = ()
    ) -> Self:
        """Return a sample of one prompt, after its image if any, and one answer."""
        content = (prompt,) if image is None else (image, prompt)
        return cls(sample_id, (Turn("user", content), Turn("assistant", (answer,))), tags)

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Return the images of all turns in their order."""
        return tuple(image for turn in self.turns for image in turn.images)

    @property
    def image(self) -> ImageSource | None:
        """Return the first image, or None for a text sample."""
        return next(iter(self.images), None)

    @property
    def prompt(self) -> str:
        """Return the text before the last answer; with several turns, each begins with its role."""
        turns = self.turns[:-1]
        return turns[0].text if len(turns) == 1 else "\n".join(f"{turn.role}: {turn.text}" for turn in turns)

    @property
    def answer(self) -> str:
        """Return the last answer."""
        return self.turns[-1].text

    @property
    def fingerprints(self) -> set[str]:
        """Return the fingerprints of the images, or that of the text of a sample without images."""
        text = json.dumps(self._texts()).encode()
        digests = [image_digest(image) for image in self.images] or [hashlib.sha256(text).hexdigest()]
        return {digest[:FINGERPRINT_DIGITS] for digest in digests}

    def content(self) -> list[Any]:
        """Return texts and image hashes as JSON values; equal for two samples that differ in id and tags only."""
        if self._is_plain():
            return [image_digest(self.image) if self.image else "", self.prompt, self.answer]
        return [[turn.role, [_content(part) for part in turn.content]] for turn in self.turns]

    def _texts(self) -> list[Any]:
        if self._is_plain():
            return [self.prompt, self.answer]
        return [[turn.role, turn.text] for turn in self.turns]

    def _is_plain(self) -> bool:
        """Return whether the sample is an image or none, one prompt, and one answer."""
        if len(self.turns) != 2 or len(self.turns[1].content) != 1:
            return False
        content = self.turns[0].content
        return (
            isinstance(content[-1], str)
            and not any(isinstance(part, str) for part in content[:-1])
            and (len(content) <= 2)
        )


def image_digest(image: ImageSource) -> str:
    """Return the SHA-256 of the bytes of an image file.

    Raises:
        DatasetError: the file cannot be read.
    """
    if isinstance(image, EmbeddedImage):
        return hashlib.sha256(image.content).hexdigest()
    try:
        with image.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(
            f"the image `{image}` cannot be read: {error}", "check the file and its permissions"
        ) from error


def _content(part: str | ImageSource) -> Any:
    return part if isinstance(part, str) else {"image": image_digest(part)}
