"""Samples as a dataset file describes them, before their images are opened."""

from dataclasses import dataclass
from pathlib import Path

from mcpmq.dataset.image_files import checked_image
from mcpmq.dataset.sample import EmbeddedImage, ImageSource, Role, Sample, Turn
from mcpmq.dataset.turns import check_turns


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image as a record gives it: the path of a file, or its bytes and a name for errors."""

    name: str
    content: bytes | None = None
    sha256: str | None = None

    def open(self, folder: Path, where: str) -> ImageSource:
        """Return the image after decoding it once; see `checked_image`."""
        from mcpmq.system.image_file import decode_image

        if self.content is None:
            return checked_image(folder, self.name, where, self.sha256)
        decode_image(self.content, f"{where}: the image `{self.name}`")
        return EmbeddedImage(self.name, self.content)


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """A message: texts and images in their order."""

    role: Role
    content: tuple[str | ImageReference, ...]


@dataclass(frozen=True, slots=True)
class DraftSample:
    """A conversation whose images are not opened yet."""

    id: str
    turns: tuple[DraftTurn, ...]
    tags: tuple[str, ...] = ()

    def open(self, folder: Path, where: str) -> Sample:
        """Check the turns and the images, whose paths are relative to `folder`.

        Raises:
            DatasetError: the conversation cannot be measured, or an image is invalid; the error has `where`.
        """
        turns = [
            Turn(turn.role, tuple(part if isinstance(part, str) else part.open(folder, where) for part in turn.content))
            for turn in self.turns
        ]
        check_turns(turns, where)
        return Sample(self.id, tuple(turns), self.tags)
