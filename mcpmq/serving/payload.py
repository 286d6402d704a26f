"""The request that the engine receives: checked fields, and images that were decoded here."""

from collections.abc import Iterator
from typing import Any

from mcpmq.serving.chat_request import ChatMessage, ChatRequest, ImagePart
from mcpmq.serving.images import decode, png_data_url, read_data_url
from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError

NO_IMAGES = "the model has no vision encoder: messages with images are not supported"
PASSED_FIELDS = ("seed", "logit_bias", "logprobs", "top_logprobs", "response_format", "ignore_eos")


def make_payload(request: ChatRequest, limits: Limits, *, has_vision: bool) -> dict[str, Any]:
    """Return the JSON for the engine; the answer is always streamed, so that it can be canceled.

    Raises:
        RequestError: an image cannot be read, there are more images or pixels than permitted, or the model has no
            vision encoder.
    """
    urls = [url for message in request.messages for url in message.image_urls]
    if urls and not has_vision:
        raise RequestError(400, NO_IMAGES, "messages")
    if len(urls) > limits.images:
        raise RequestError(400, f"{len(urls)} images, more than {limits.images}", "messages")
    images = _decoded(urls, limits.pixels)
    return {
        **request.model_dump(include=set(PASSED_FIELDS), exclude_unset=True, by_alias=True),
        **_sampling(request),
        "messages": [_message(message, images) for message in request.messages],
        "max_tokens": request.num_tokens(limits),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


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


def _message(message: ChatMessage, images: Iterator[str]) -> dict[str, Any]:
    parts = [_image(next(images)) if isinstance(part, ImagePart) else part.model_dump() for part in message.content]
    only_text = len(parts) == 1 and not message.image_urls
    return {"role": message.role, "content": parts[0]["text"] if only_text else parts}


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _decoded(urls: list[str], max_pixels: int) -> Iterator[str]:
    """Yield every image as PNG in a data URL; the limit is that of all images together."""
    for number, url in enumerate(urls, start=1):
        image = decode(read_data_url(url), number, max_pixels)
        max_pixels -= image.width * image.height
        yield png_data_url(image)
