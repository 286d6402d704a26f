"""The body of POST /v1/chat/completions: OpenAI's fields that the engines support, with bounds."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError

MAX_SAMPLED_FRAMES, MAX_FPS = 10_000, 1000.0
SHORT_TEXT, MAX_STOPS, MAX_ALTERNATIVES, MAX_BIASES, MAX_PATTERN = 256, 4, 20, 300, 200
REPETITIONS = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
Short = Annotated[str, Field(max_length=SHORT_TEXT)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageUrl(_Part):
    """An image as a data URL; nothing is fetched."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None  # accepted; every image has the resolution of the model


class TextPart(_Part):
    """A text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Part):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(_Part):
    """A video as a data URL; nothing is fetched."""

    url: str


class VideoPart(_Part):
    """A video of a message, as vLLM accepts it."""

    type: Literal["video_url"]
    video_url: VideoUrl


class InputAudio(_Part):
    """An audio file in base64."""

    data: str
    format: Literal["wav", "flac"]


class AudioPart(_Part):
    """An audio of a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | VideoPart | AudioPart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(_Part):
    """One message; the fields with the value None are those of an answer that a client sends back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)]
    name: Short | None = None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None
    annotations: list[None] | None = Field(default=None, max_length=0)

    @property
    def texts(self) -> list[str]:
        return [part.text for part in self.content if isinstance(part, TextPart)]

    @property
    def image_urls(self) -> list[str]:
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]

    @property
    def video_urls(self) -> list[str]:
        return [part.video_url.url for part in self.content if isinstance(part, VideoPart)]

    @property
    def audio_files(self) -> list[str]:
        """Return the files of the audios, in base64."""
        return [part.input_audio.data for part in self.content if isinstance(part, AudioPart)]


class StreamOptions(_Part):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Part):
    """A JSON schema for the answer."""

    name: Short = ""
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Part):
    """The syntax of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class VideoSampling(_Part):
    """The frames to sample from every video, instead of the rules of the processor."""

    num_frames: int | None = Field(default=None, ge=1, le=MAX_SAMPLED_FRAMES)
    fps: float | None = Field(default=None, gt=0, le=MAX_FPS)

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if self.num_frames is not None and self.fps is not None:
            raise ValueError("give `num_frames` or `fps`, not both")
        return self


class MediaOptions(_Part):
    """Options of media by kind, as vLLM accepts them."""

    video: VideoSampling = VideoSampling()


class ChatRequest(_Part):
    """A request for one answer; an unsupported field is an error."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: Short = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 32)
    stop: Short | Annotated[list[Short], Field(max_length=MAX_STOPS)] | None = None
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None = (
        Field(default=None, max_length=MAX_BIASES)
    )
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_ALTERNATIVES)
    response_format: ResponseFormat | None = None
    media_io_kwargs: MediaOptions = MediaOptions()
    n: Literal[1] = 1
    user: Short | None = None
    ignore_eos: bool = False  # of llama.cpp, to measure its speed

    @property
    def stops(self) -> list[str]:
        """Return the texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def num_tokens(self, limits: Limits) -> int:
        """Return the maximum tokens of the answer: the requested ones, or the limit of the server."""
        return self.max_completion_tokens or self.max_tokens or limits.tokens


def parse_chat(body: bytes, limits: Limits) -> ChatRequest:
    """Parse and check a body.

    Raises:
        RequestError: it is not JSON, has an unsupported or invalid field, or exceeds a limit.
    """
    try:
        request = ChatRequest.model_validate(_load_json(body, limits))
        _check_tokens(request, limits)
        _check_texts(request, limits)
        if request.response_format and request.response_format.json_schema:
            _check_schema(request.response_format.json_schema.json_schema, limits)
    except ValidationError as error:
        raise _invalid_field(error) from None
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply") from None
    return request


def _load_json(body: bytes, limits: Limits) -> dict[str, Any]:
    if (items := sum(map(body.count, (b"[", b"{", b":", b",")))) > limits.json_items:
        raise RequestError(413, f"the body has {items:,} brackets, colons and commas, more than {limits.json_items:,}")
    try:
        found = json.loads(body)
    except ValueError:  # also of an invalid encoding
        raise RequestError(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise RequestError(400, "the body is not a JSON object")
    return found


def _invalid_field(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    names = [str(name)[:SHORT_TEXT] for name in first["loc"]]
    param = ".".join(name for name in names if "[" not in name)  # without the types of a union
    return RequestError(400, f"{param}: {first['msg'][:SHORT_TEXT]}", param)


def _check_tokens(request: ChatRequest, limits: Limits) -> None:
    for name in ("max_completion_tokens", "max_tokens"):
        if (count := getattr(request, name) or 0) > limits.tokens:
            raise RequestError(
                400, f"{name}: {count:,} is more than {limits.tokens:,}, the limit that `--max-tokens` sets", name
            )


def _check_texts(request: ChatRequest, limits: Limits) -> None:
    if (count := len(request.messages)) > limits.messages:
        raise RequestError(400, f"{count:,} messages, more than {limits.messages}", "messages")
    texts = [text for message in request.messages for text in (*message.texts, message.reasoning_content or "")]
    if (count := sum(map(len, texts))) > limits.text_characters:
        raise RequestError(413, f"the texts have {count:,} characters, more than {limits.text_characters:,}")
    _check_unicode([*texts, *request.stops])


def _check_unicode(texts: list[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RequestError(400, "a text has a surrogate that is not part of a pair") from None


def _check_schema(schema: Any, limits: Limits, depth: int = 0) -> None:
    if depth > limits.schema_depth:
        raise RequestError(400, f"the JSON schema is nested more than {limits.schema_depth} times", "response_format")
    for key, value in _items(schema):
        _check_keyword(key, value, limits)
        _check_schema(value, limits, depth + 1)


def _items(schema: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        yield from schema.items()
    elif isinstance(schema, list):
        yield from (("", value) for value in schema)


def _check_keyword(key: str, value: Any, limits: Limits) -> None:
    _check_unicode([key, value if isinstance(value, str) else ""])
    if key == "$ref" and not str(value).startswith("#"):
        raise RequestError(400, "the JSON schema has a reference to another document", "response_format")
    if key in REPETITIONS and not (isinstance(value, int) and 0 <= value <= limits.schema_number):
        raise RequestError(400, f"`{key}` is not an integer from 0 to {limits.schema_number}", "response_format")
    if key in ("pattern", "patternProperties") and len(str(value)) > MAX_PATTERN:
        raise RequestError(400, f"a pattern has more than {MAX_PATTERN} characters", "response_format")
