"""Images, videos and audios of a record, and the places for them in its messages."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mcpmq.dataset.draft import AudioReference, DraftPart, DraftTurn, ImageReference, VideoReference
from mcpmq.dataset.record_files import audio_references, image_reference, image_references
from mcpmq.dataset.record_videos import video_references
from mcpmq.errors import DatasetError

PLACEHOLDER = re.compile(r"<image(?:_\d+)?>|<video>|<audio>")
Reference = TypeVar("Reference", ImageReference, VideoReference, AudioReference)


@dataclass(slots=True)
class _Queue(Generic[Reference]):
    """Images, videos or audios of a record, which their placeholders take in order."""

    kind: str
    rest: list[Reference]
    where: str
    placed: int = 0

    def take(self, placeholder: str) -> Reference:
        self.placed += 1
        if not self.rest:
            raise DatasetError(
                f"{self.where}: `{placeholder}` number {self.placed} has no {self.kind}",
                f"give one {self.kind} per placeholder",
            )
        return self.rest.pop(0)

    def take_rest(self) -> list[Reference]:
        """Return the files that no placeholder took; without placeholders, they precede the first prompt."""
        if self.rest and self.placed:
            raise DatasetError(
                f"{self.where}: {self.placed + len(self.rest)} {self.kind}s and {self.placed} places for them",
                f"write `<{self.kind}>` for every {self.kind}, or for none",
            )
        return self.rest


class Media:
    """The images, videos and audios of a record, which placeholders and parts without a path take in their order."""

    def __init__(self, record: Mapping[str, Any], where: str) -> None:
        """Read the keys `image`, `images`, `video`, `videos`, `fps`, `audio` and `audios`.

        Raises:
            DatasetError: a value is not an image, a video or an audio.
        """
        self._where, named = where, record.get("image")
        # MiniCPM-V trains on {"<image_00>": path}: a placeholder takes the image of its name
        self._named = dict(named) if isinstance(named, dict) and all(map(PLACEHOLDER.fullmatch, named)) else {}
        listed = [record[key] for key in ("image", "images") if key in record and not self._named]
        images = [image for value in listed for image in image_references(value, where)]
        self.images = _Queue("image", images, where)
        self.videos = _Queue("video", list(video_references(record, where)), where)
        # LLaVA-Video writes `<image>` for a video
        self._is_tagged_as_image = bool(self.videos.rest) and not images and not self._named
        listed = [record[key] for key in ("audio", "audios") if key in record]
        self.audios = _Queue("audio", [audio for value in listed for audio in audio_references(value, where)], where)

    def take(self, placeholder: str) -> ImageReference | VideoReference | AudioReference:
        """Return the image, video or audio of the next placeholder."""
        if placeholder in self._named:
            self.images.placed += 1
            return image_reference(self._named.pop(placeholder), self._where)
        if placeholder == "<audio>":
            return self.audios.take(placeholder)
        if placeholder == "<video>" or self._is_tagged_as_image:
            return self.videos.take(placeholder)
        return self.images.take(placeholder)

    def place_rest(self, turns: Sequence[DraftTurn]) -> tuple[DraftTurn, ...]:
        """Return the turns; files without any placeholder of their kind precede the first prompt."""
        if self._named:
            raise DatasetError(f"{self._where}: no `{min(self._named)}` in a prompt", "write it where the image is")
        rest: list[DraftPart] = [*self.images.take_rest(), *self.videos.take_rest(), *self.audios.take_rest()]
        if not rest:
            return tuple(turns)
        first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            hint = "docs/datasets.md has an example of every accepted format"
            raise DatasetError(f"{self._where}: no prompt for {len(rest)} images, videos or audios", hint)
        changed = DraftTurn("user", (*rest, *turns[first].content))
        return (*turns[:first], changed, *turns[first + 1 :])
