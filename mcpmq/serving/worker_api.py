"""The HTTP interface of a worker: chat completions of a chat engine as a stream of OpenAI's chunks."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mcpmq.errors import DatasetError, McpmqError
from mcpmq.serving.answer_response import StreamedAnswer
from mcpmq.serving.audio import decode_part
from mcpmq.serving.engine import Answer, ChatEngine, Completion, Message, Piece, Sampling, TokenLogprob
from mcpmq.serving.images import decode, read_data_url
from mcpmq.serving.limits import LIMITS
from mcpmq.serving.request_error import RequestError
from mcpmq.serving.video import open_part


def make_worker_app(engine: ChatEngine, name: str, key: str) -> Starlette:
    """Return the application; one thread runs the engine, so that one chat is answered at a time."""
    thread = ThreadPoolExecutor(1, "engine")
    authorization = f"Bearer {key}".encode()

    async def chat_completions(request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), authorization):
            return RequestError(401, "the key is wrong").response()
        payload = await request.json()
        return StreamedAnswer(_chunks(engine, thread, payload, name), LIMITS)

    async def metrics(request: Request) -> Response:
        await asyncio.get_running_loop().run_in_executor(thread, bool)  # replies when the thread is free
        return PlainTextResponse("")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/metrics", metrics),
        ]
    )


async def _chunks(
    engine: ChatEngine, thread: ThreadPoolExecutor, payload: dict[str, Any], name: str
) -> AsyncIterator[bytes]:
    """Yield the chunks of an answer; the end of the iteration closes the answer.

    Raises:
        RequestError: the engine does not accept the chat, or failed.
    """
    loop = asyncio.get_running_loop()
    head = {"id": f"chatcmpl-{uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time())}
    answer = await loop.run_in_executor(thread, _begin, engine, payload)
    try:
        part = await loop.run_in_executor(thread, _next, answer)  # an error of the request has its own status
        yield _event(head, name, {"role": "assistant", "content": ""})
        while not isinstance(part, Completion):
            yield _event(head, name, {"content": part.text}, logprobs=_logprobs(part))
            part = await loop.run_in_executor(thread, _next, answer)
        yield _event(head, name, {}, finish_reason=part.finish_reason)
        yield _compact({**head, "model": name, "choices": [], **_statistics(part)})
    finally:
        thread.submit(answer.close)


def _begin(engine: ChatEngine, payload: dict[str, Any]) -> Answer:
    messages = [_message(message) for message in payload["messages"]]
    return engine.generate(messages, _sampling(payload))


def _next(answer: Answer) -> Piece | Completion:
    try:
        return next(answer)
    except StopIteration as end:
        completion: Completion = end.value
        return completion
    except DatasetError as error:
        raise RequestError(400, str(error)) from error
    except McpmqError as error:
        raise RequestError(500, str(error)) from error


def _message(message: dict[str, Any]) -> Message:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Message(message["role"], tuple(_parts(parts)))


def _parts(parts: list[dict[str, Any]]) -> Iterator[Any]:
    for number, part in enumerate(parts, start=1):
        if part["type"] == "text":
            yield part["text"]
        elif part["type"] == "input_audio":
            yield decode_part(part["input_audio"]["data"], number)
        elif part["type"] == "video_url":
            yield open_part(part, number, LIMITS)
        else:
            yield decode(read_data_url(part["image_url"]["url"]), number, LIMITS.pixels)


def _sampling(payload: dict[str, Any]) -> Sampling:
    top_logprobs = payload.get("top_logprobs") or 0
    return Sampling(
        temperature=payload["temperature"],
        top_p=payload["top_p"],
        seed=payload.get("seed"),
        max_tokens=payload["max_tokens"],
        stop=tuple(payload["stop"]),
        top_logprobs=top_logprobs if payload.get("logprobs") else None,
    )


def _event(head: dict[str, Any], name: str, delta: dict[str, str], **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None, **fields}
    return _compact({**head, "model": name, "choices": [choice]})


def _compact(event: dict[str, Any]) -> bytes:
    """Return JSON without spaces, as llama.cpp writes it."""
    return json.dumps(event, separators=(",", ":")).encode()


def _logprobs(piece: Piece) -> dict[str, Any] | None:
    return {"content": [_token(token) for token in piece.tokens]} if piece.tokens else None


def _token(token: TokenLogprob) -> dict[str, Any]:
    alternatives = [_entry(text, logprob) for text, logprob in token.alternatives]
    return {"id": token.token_id, **_entry(token.text, token.logprob), "top_logprobs": alternatives}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob}


def _statistics(completion: Completion) -> dict[str, Any]:
    prompt, generated = completion.prompt_tokens, completion.completion_tokens
    timings = {
        "prompt_n": prompt,
        "prompt_ms": completion.prompt_ms,
        "predicted_n": generated,
        "predicted_ms": completion.predicted_ms,
        "predicted_per_second": completion.tokens_per_second,
    }
    usage = {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}
    return {"usage": usage, "timings": timings}
