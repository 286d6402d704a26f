"""The request that the engine receives: checked fields, and images that were decoded here."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from mcpmq.errors import DatasetError
from mcpmq.families.family import Family
from mcpmq.serving.chat_request import ChatMessage, ChatRequest, ImagePart
from mcpmq.serving.engine import Message
from mcpmq.serving.gguf import check_texts
from mcpmq.serving.image_tags import with_image_tags
from mcpmq.serving.images import decode, png_data_url, read_data_url
from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError
from mcpmq.serving.served_model import EngineFacts

NO_IMAGES = "the model has no vision encoder: messages with images are not supported"
ROLES = {"developer": "system"}  # a newer name
PASSED_FIELDS = ("seed", "logit_bias", "logprobs", "top_logprobs", "response_format", "ignore_eos")


@dataclass(frozen=True, slots=True)
class _Image:
    """A decoded image, as a data URL."""

    url: str


def make_payload(request: ChatRequest, limits: Limits, engine: EngineFacts) -> dict[str, Any]:
    """Return the JSON for the engine; the answer is always streamed, so that it can be canceled.

    Raises:
        RequestError: the engine does not support a field, an image cannot be read, there are more images or pixels than
            permitted, or the model has no vision encoder.
    """
    _check_supported(request, engine.unsupported)
    urls = [url for message in request.messages for url in message.image_urls]
    if urls and not engine.has_vision:
        raise RequestError(400, NO_IMAGES, "messages")
    if len(urls) > limits.images:
        raise RequestError(400, f"{len(urls)} images, more than {limits.images}", "messages")
    if engine.family:
        _check_texts(request.messages, engine.family)
    return {
        **request.model_dump(include=set(PASSED_FIELDS), exclude_unset=True, by_alias=True),
        **_sampling(request),
        "messages": _messages(request.messages, _decoded(urls, limits.pixels), engine.family),
        "max_tokens": request.num_tokens(limits),
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {"enable_thinking": False},
    }


def _check_supported(request: ChatRequest, unsupported: Collection[str]) -> None:
    for name in unsupported:
        if getattr(request, name) != ChatRequest.model_fields[name].default:
            raise RequestError(400, f"the engine of this model does not support `{name}`", name)


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


def _messages(messages: list[ChatMessage], images: Iterator[str], family: Family | None) -> list[dict[str, Any]]:
    """Return the messages for the engine; for llama.cpp, with the tags of the family around images."""
    contents: list[list[str | _Image]] = [
        [_Image(next(images)) if isinstance(part, ImagePart) else part.text for part in message.content]
        for message in messages
    ]
    if family:
        contents = with_image_tags(contents, family.prompt_format)
    roles = [ROLES.get(message.role, message.role) for message in messages]
    return [{"role": role, "content": _content(content)} for role, content in zip(roles, contents, strict=True)]


def _content(parts: list["str | _Image"]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": part.url}}
        for part in parts
    ]


def _decoded(urls: list[str], max_pixels: int) -> Iterator[str]:
    """Yield every image as PNG in a data URL; the limit is that of all images together."""
    for number, url in enumerate(urls, start=1):
        image = decode(read_data_url(url), number, max_pixels)
        max_pixels -= image.width * image.height
        yield png_data_url(image)
