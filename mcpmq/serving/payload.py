"""The request that the engine receives: checked fields, and images and audio that were decoded here."""

from collections.abc import Collection, Iterator, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from mcpmq.errors import DatasetError
from mcpmq.families.family import Family
from mcpmq.serving.audio import decode_all, wav_part
from mcpmq.serving.chat_request import (
    AudioPart,
    ChatMessage,
    ChatRequest,
    ImagePart,
    TextPart,
    VideoPart,
    VideoSampling,
)
from mcpmq.serving.engine import Message
from mcpmq.serving.gguf import check_texts
from mcpmq.serving.image_tags import with_image_tags
from mcpmq.serving.images import decode, png_data_url, read_data_url
from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError
from mcpmq.serving.served_model import EngineFacts
from mcpmq.serving.video import VideoUrl, check_urls
from mcpmq.system.audio_file import Waveform

NO_IMAGES = "the model has no vision encoder: messages with images are not supported"
ROLES = {"developer": "system"}  # a newer name
PASSED_FIELDS = ("seed", "logit_bias", "logprobs", "top_logprobs", "response_format", "ignore_eos")


@dataclass(frozen=True, slots=True)
class _Image:
    """A decoded image, as a data URL."""

    url: str


_Media: TypeAlias = _Image | VideoUrl | Waveform


def make_payload(request: ChatRequest, limits: Limits, engine: EngineFacts) -> dict[str, Any]:
    """Return the JSON for the engine; the answer is always streamed, so that it can be canceled.

    Raises:
        RequestError: the engine does not support a field, an image or audio cannot be read, a video is not a data URL,
            there are more of them than permitted, or the model does not accept them.
    """
    _check_supported(request, engine.unsupported)
    urls = [url for message in request.messages for url in message.image_urls]
    videos = [url for message in request.messages for url in message.video_urls]
    audio = [data for message in request.messages for data in message.audio_files]
    _check_media(engine, urls, videos, audio)
    counts = (urls, limits.images, "images"), (videos, limits.videos, "videos"), (audio, limits.audios, "audios")
    for given, limit, name in counts:
        if len(given) > limit:
            raise RequestError(400, f"{len(given)} {name}, more than {limit}", "messages")
    check_urls(videos)
    if engine.family:
        _check_texts(request.messages, engine.family)
    return {
        **request.model_dump(include=set(PASSED_FIELDS), exclude_unset=True, by_alias=True),
        **_sampling(request),
        "messages": _messages(
            request.messages,
            _decoded(urls, limits.pixels),
            _sampled(videos, request.media_io_kwargs.video),
            decode_all(audio, limits.audio_seconds),
            engine.family,
        ),
        "max_tokens": request.num_tokens(limits),
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": False},
    }


def _check_supported(request: ChatRequest, unsupported: Collection[str]) -> None:
    for name in unsupported:
        if getattr(request, name) != ChatRequest.model_fields[name].default:
            raise RequestError(400, f"the engine of this model does not support `{name}`", name)


def _check_media(engine: EngineFacts, images: Sized, videos: Sized, audio: Sized) -> None:
    """Check that the model accepts the kinds of media of a request."""
    if images and not engine.has_vision:
        raise RequestError(400, NO_IMAGES, "messages")
    if videos and engine.no_video:
        raise RequestError(400, f"messages with videos are not supported: {engine.no_video}", "messages")
    if audio and engine.no_audio:
        raise RequestError(400, f"messages with audio are not supported: {engine.no_audio}", "messages")


def _sampling(request: ChatRequest) -> dict[str, Any]:
    """Return the settings of sampling; llama.cpp's own defaults would restrict it to 40 tokens."""
    return {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": 0,
        "min_p": 0,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "stop": request.stops,
    }


def _check_texts(messages: list[ChatMessage], family: Family) -> None:
    try:
        check_texts(family, [Message("user", tuple(message.texts)) for message in messages])
    except DatasetError as error:
        raise RequestError(400, str(error), "messages") from error


def _messages(
    messages: list[ChatMessage],
    images: Iterator[str],
    videos: Iterator[VideoUrl],
    audio: Iterator[Waveform],
    family: Family | None,
) -> list[dict[str, Any]]:
    """Return the messages for the engine; for llama.cpp, with the tags of the family around images."""

    def decoded(part: TextPart | ImagePart | VideoPart | AudioPart) -> str | _Media:
        if isinstance(part, TextPart):
            return part.text
        if isinstance(part, VideoPart):
            return next(videos)
        return _Image(next(images)) if isinstance(part, ImagePart) else next(audio)

    contents: list[list[str | _Media]] = [[decoded(part) for part in message.content] for message in messages]
    if family:
        contents = cast("list[list[str | _Media]]", with_image_tags(contents, family.prompt_format))
    roles = [ROLES.get(message.role, message.role) for message in messages]
    return [{"role": role, "content": _content(content)} for role, content in zip(roles, contents, strict=True)]


def _content(parts: "list[str | _Media]") -> str | list[dict[str, Any]]:
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(map(_part, parts))


def _part(part: "str | _Media") -> dict[str, Any]:
    if isinstance(part, Waveform):
        return wav_part(part)
    if isinstance(part, VideoUrl):
        return part.to_part()
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": part.url}}


def _sampled(urls: list[str], sampling: VideoSampling) -> Iterator[VideoUrl]:
    return (VideoUrl(url, sampling.num_frames, sampling.fps) for url in urls)


def _decoded(urls: list[str], max_pixels: int) -> Iterator[str]:
    """Yield every image as PNG in a data URL; the limit is that of all images together."""
    for number, url in enumerate(urls, start=1):
        image = decode(read_data_url(url), number, max_pixels)
        max_pixels -= image.width * image.height
        yield png_data_url(image)
