"""Samples: conversations of texts, images, videos and audio that end with an answer."""

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
    """The bytes of an image or audio file that is stored inside of a dataset file."""

    name: str  # its place in the dataset file, for errors
    content: bytes


ImageSource = Path | EmbeddedImage


@dataclass(frozen=True, slots=True)
class Audio:
    """An audio file."""

    source: ImageSource

    def content(self) -> dict[str, str]:
        """Return the hash of the file as a JSON value."""
        return {"audio": image_digest(self.source)}


@dataclass(frozen=True, slots=True)
class Video:
    """A video: one file with all frames, or an image file for each frame.

    Attributes:
        source: the file, or the frames in their order.
        fps: frames per second of a list of frames, or those to sample from a file; None if they are not given.
        num_frames: number of frames to sample; None for the rules of the processor.
    """

    source: ImageSource | tuple[ImageSource, ...]
    fps: float | None = None
    num_frames: int | None = None

    @property
    def files(self) -> tuple[ImageSource, ...]:
        """Return the file, or those of all frames."""
        return self.source if isinstance(self.source, tuple) else (self.source,)

    def content(self) -> dict[str, Any]:
        """Return the hashes of the files and the settings as JSON values."""
        digests = [image_digest(file) for file in self.files]
        settings = {"fps": self.fps, "num_frames": self.num_frames}
        given = {name: value for name, value in settings.items() if value is not None}
        return {"video": digests if isinstance(self.source, tuple) else digests[0], **given}


Part = str | ImageSource | Video | Audio


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation: texts, images, videos and audio in their order."""

    role: Role
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Return the texts, one line each."""
        return "\n".join(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Return the images in their order."""
        return tuple(part for part in self.content if not isinstance(part, str | Video | Audio))

    @property
    def videos(self) -> tuple[Video, ...]:
        """Return the videos in their order."""
        return tuple(part for part in self.content if isinstance(part, Video))

    @property
    def audio(self) -> tuple[Audio, ...]:
        """Return the audios in their order."""
        return tuple(part for part in self.content if isinstance(part, Audio))

    @property
    def files(self) -> tuple[ImageSource, ...]:
        """Return the files of all images, videos and audios in their order."""
        return tuple(file for part in self.content if not isinstance(part, str) for file in _files(part))


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
        """Return the first image, or None for a sample without images."""
        return next(iter(self.images), None)

    @property
    def videos(self) -> tuple[Video, ...]:
        """Return the videos of all turns in their order."""
        return tuple(video for turn in self.turns for video in turn.videos)

    @property
    def has_vision(self) -> bool:
        """Return whether the sample has an image or a video."""
        return bool(self.images or self.videos)

    @property
    def audio(self) -> tuple[Audio, ...]:
        """Return the audios of all turns in their order."""
        return tuple(audio for turn in self.turns for audio in turn.audio)

    @property
    def files(self) -> tuple[ImageSource, ...]:
        """Return the files of all images, videos and audios in their order."""
        return tuple(file for turn in self.turns for file in turn.files)

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
        """Return the fingerprints of the files, or that of the text of a sample without files."""
        text = json.dumps(self._texts()).encode()
        digests = [image_digest(file) for file in self.files] or [hashlib.sha256(text).hexdigest()]
        return {digest[:FINGERPRINT_DIGITS] for digest in digests}

    def content(self) -> list[Any]:
        """Return texts and hashes of files as JSON values; equal for two samples that differ in id and tags only."""
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
            and not any(isinstance(part, str | Video | Audio) for part in content[:-1])
            and (len(content) <= 2)
        )


def image_digest(image: ImageSource) -> str:
    """Return the SHA-256 of the bytes of a file.

    Raises:
        DatasetError: the file cannot be read.
    """
    if isinstance(image, EmbeddedImage):
        return hashlib.sha256(image.content).hexdigest()
    try:
        with image.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"`{image}` cannot be read: {error}", "check the file and its permissions") from error


def _files(part: ImageSource | Video | Audio) -> tuple[ImageSource, ...]:
    if isinstance(part, Video):
        return part.files
    return (part.source,) if isinstance(part, Audio) else (part,)


def _content(part: Part) -> Any:
    if isinstance(part, Video | Audio):
        return part.content()
    return part if isinstance(part, str) else {"image": image_digest(part)}
