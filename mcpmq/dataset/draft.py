"""Samples as a dataset file describes them, before their images and audio are opened."""

from dataclasses import dataclass
from pathlib import Path

from mcpmq.dataset.image_files import checked_audio, checked_image
from mcpmq.dataset.sample import Audio, EmbeddedImage, ImageSource, Part, Role, Sample, Turn
from mcpmq.dataset.turns import check_turns


@dataclass(frozen=True, slots=True)
class FileReference:
    """A file as a record gives it: its path, or its bytes and a name for errors."""

    name: str
    content: bytes | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ImageReference(FileReference):
    """An image file."""

    def open(self, folder: Path, where: str) -> ImageSource:
        """Return the image after decoding it once; see `checked_image`."""
        from mcpmq.system.image_file import decode_image

        if self.content is None:
            return checked_image(folder, self.name, where, self.sha256)
        decode_image(self.content, f"{where}: the image `{self.name}`")
        return EmbeddedImage(self.name, self.content)


@dataclass(frozen=True, slots=True)
class AudioReference(FileReference):
    """An audio file."""

    def open(self, folder: Path, where: str) -> Audio:
        """Return the audio after decoding it once; see `checked_audio`."""
        from mcpmq.system.audio_file import decode_audio

        if self.content is None:
            return Audio(checked_audio(folder, self.name, where, self.sha256))
        decode_audio(self.content, f"{where}: the audio `{self.name}`")
        return Audio(EmbeddedImage(self.name, self.content))


DraftPart = str | ImageReference | AudioReference


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """A message: texts, images and audio in their order."""

    role: Role
    content: tuple[DraftPart, ...]


@dataclass(frozen=True, slots=True)
class DraftSample:
    """A conversation whose images and audio are not opened yet."""

    id: str
    turns: tuple[DraftTurn, ...]
    tags: tuple[str, ...] = ()

    def open(self, folder: Path, where: str) -> Sample:
        """Check the turns and the files, whose paths are relative to `folder`.

        Raises:
            DatasetError: the conversation cannot be measured, or a file is invalid; the error has `where`.
        """

        def opened(part: DraftPart) -> Part:
            return part if isinstance(part, str) else part.open(folder, where)

        turns = [Turn(turn.role, tuple(map(opened, turn.content))) for turn in self.turns]
        check_turns(turns, where)
        return Sample(self.id, tuple(turns), self.tags)
