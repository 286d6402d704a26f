"""Lines of mcpmq's manifest: one JSON object per sample, with a prompt and an answer, or with messages."""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from mcpmq.dataset.draft import AudioReference, DraftSample, DraftTurn, FileReference, ImageReference, VideoReference
from mcpmq.dataset.sample import Audio, ImageSource, Part, Role, Sample, Turn, Video
from mcpmq.errors import DatasetError

MANIFEST_HINT = (
    'write one JSON object per line: {"id": "1", "image": "images/1.jpg", "prompt": "How many?", "answer": "Three."}'
)
MAX_FPS, MAX_NUM_FRAMES = 1000.0, 100_000  # of a video
KEYS_HINT = "use the keys {}; the image file is named in `image`, the audio file in `audio`"
KEYS_WITHOUT_MESSAGES = ("image", "image_sha256", "audio", "audio_sha256", "prompt", "answer")
Text = Annotated[str, Field(min_length=1)]
Hash = Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _TextPart(_Object):
    type: Literal["text"]
    text: Text

    def part(self) -> str:
        return self.text


class _ImagePart(_Object):
    type: Literal["image"]
    image: Text
    sha256: Hash | None = None

    def part(self) -> ImageReference:
        return ImageReference(self.image, sha256=self.sha256)


class _AudioPart(_Object):
    type: Literal["audio"]
    audio: Text
    sha256: Hash | None = None

    def part(self) -> AudioReference:
        return AudioReference(self.audio, sha256=self.sha256)


class _VideoPart(_Object):
    type: Literal["video"]
    video: Text | Annotated[list[Text], Field(min_length=1)]
    fps: Annotated[float, Field(gt=0, le=MAX_FPS)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=MAX_NUM_FRAMES)] | None = None
    sha256: Hash | None = None

    def part(self) -> VideoReference:
        if isinstance(self.video, str):
            return VideoReference(FileReference(self.video, sha256=self.sha256), self.fps, self.num_frames)
        return VideoReference(tuple(map(ImageReference, self.video)), self.fps, self.num_frames)

    @model_validator(mode="after")
    def _check_file_keys(self) -> Self:
        if self.sha256 and not isinstance(self.video, str):
            raise ValueError("`sha256` is that of a file, not of a list of frames")
        if self.fps and self.num_frames and isinstance(self.video, str):
            raise ValueError("a video file has `fps` and `num_frames`; give one of them")
        return self


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


_Part = Annotated[_TextPart | _ImagePart | _VideoPart | _AudioPart, Field(discriminator="type")]


class _Message(_Object):
    role: Role
    content: Annotated[list[_Part], BeforeValidator(_as_parts), Field(min_length=1)]

    def turn(self) -> DraftTurn:
        return DraftTurn(self.role, tuple(one.part() for one in self.content))


class _Line(_Object):
    id: Text
    image: Text | None = None
    image_sha256: Hash | None = None
    audio: Text | None = None
    audio_sha256: Hash | None = None
    prompt: Text | None = None
    answer: Text | None = None
    tags: list[str] = []
    messages: Annotated[list[_Message], Field(min_length=2)] | None = None

    def turns(self) -> Iterator[DraftTurn]:
        """Yield the turns, also of a line with a prompt and an answer."""
        if self.messages is not None:
            yield from (message.turn() for message in self.messages)
            return
        image = () if self.image is None else (ImageReference(self.image, sha256=self.image_sha256),)
        audio = () if self.audio is None else (AudioReference(self.audio, sha256=self.audio_sha256),)
        yield DraftTurn("user", (*image, *audio, str(self.prompt)))
        yield DraftTurn("assistant", (str(self.answer),))

    @field_validator("id")
    @classmethod
    def _check_id(cls, value: str) -> str:
        return check_id(value)

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        given = [name for name in KEYS_WITHOUT_MESSAGES if getattr(self, name) is not None]
        if self.messages is not None and given:
            raise ValueError(f"`messages` and `{given[0]}`")
        for name in ("image", "audio"):
            if getattr(self, f"{name}_sha256") and not getattr(self, name):
                raise ValueError(f"`{name}_sha256` without `{name}`")
        if missing := [name for name in ("prompt", "answer") if not self.messages and getattr(self, name) is None]:
            raise ValueError(f"`{missing[0]}` is missing")
        return self


def check_id(value: str) -> str:
    """Return the id of a sample.

    Raises:
        ValueError: it has a control character.
    """
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ValueError("it has a control character")
    return value


def parse_line(value: Any, where: str) -> DraftSample:
    """Return the sample of a JSON value in a manifest.

    Raises:
        DatasetError: the value is not a sample; the error has `where` and the key.
    """
    try:
        line = _Line.model_validate(value)
    except ValidationError as error:
        raise _line_error(where, error) from error
    return DraftSample(line.id, tuple(line.turns()), tuple(line.tags))


def manifest_line(sample: Sample, names: Mapping[ImageSource, str]) -> dict[str, Any]:
    """Return the JSON value of a sample; `names` has the path of every file, relative to the folder."""
    tags = {"tags": list(sample.tags)} if sample.tags else {}
    messages = [{"role": turn.role, "content": _parts(turn, names)} for turn in sample.turns]
    return {"id": sample.id, "messages": messages, **tags}


def _parts(turn: Turn, names: Mapping[ImageSource, str]) -> str | list[dict[str, Any]]:
    if len(turn.content) == 1 and isinstance(turn.content[0], str):
        return turn.content[0]
    return [_part(part, names) for part in turn.content]


def _part(part: Part, names: Mapping[ImageSource, str]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Audio):
        return {"type": "audio", "audio": names[part.source]}
    if not isinstance(part, Video):
        return {"type": "image", "image": names[part]}
    video = [names[file] for file in part.files]
    settings = {"fps": part.fps, "num_frames": part.num_frames}
    given = {name: value for name, value in settings.items() if value is not None}
    return {"type": "video", "video": video if isinstance(part.source, tuple) else video[0], **given}


def _line_error(where: str, error: ValidationError) -> DatasetError:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = ", ".join(f"`{name}`" for name in _Line.model_fields)
        return DatasetError(f"{where}: unknown key `{key}`", KEYS_HINT.format(known))
    return DatasetError(f"{where}: {key + ': ' if key else ''}{first['msg']}", MANIFEST_HINT)
