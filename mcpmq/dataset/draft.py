"""Samples as a dataset file describes them, before their images, videos and audio are opened."""

from dataclasses import dataclass
from pathlib import Path

from mcpmq.dataset.media_files import checked_audio, checked_image, checked_video, frame_names
from mcpmq.dataset.sample import Audio, EmbeddedImage, ImageSource, Part, Role, Sample, Turn, Video
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


@dataclass(frozen=True, slots=True)
class VideoReference:
    """A video: a file, a folder of frames, or a list of frames, with the settings of `Video`."""

    source: FileReference | tuple[ImageReference, ...]
    fps: float | None = None
    num_frames: int | None = None

    def open(self, folder: Path, where: str) -> Video:
        """Return the video after decoding all frames once; see `checked_video` and `checked_image`."""
        from mcpmq.system.video_file import video_info

        source = self.source
        if isinstance(source, FileReference) and source.content is None:
            names = frame_names(folder, source.name, where)
            source = tuple(map(ImageReference, names)) or source
        if isinstance(source, tuple):
            return Video(tuple(frame.open(folder, where) for frame in source), self.fps, self.num_frames)
        if source.content is None:
            return Video(checked_video(folder, source.name, where, source.sha256), self.fps, self.num_frames)
        video_info(source.content, f"{where}: the video `{source.name}`")
        return Video(EmbeddedImage(source.name, source.content), self.fps, self.num_frames)


DraftPart = str | ImageReference | VideoReference | AudioReference


@dataclass(frozen=True, slots=True)
class DraftTurn:
    """A message: texts, images, videos and audio in their order."""

    role: Role
    content: tuple[DraftPart, ...]


@dataclass(frozen=True, slots=True)
class DraftSample:
    """A conversation whose images, videos and audio are not opened yet."""

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
