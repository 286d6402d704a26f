"""The HTTP interface: GET /ping, POST /invocations, OpenAI's chat completions, metrics and the page."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mcpmq.serving.admission import Admission
from mcpmq.serving.answer_response import StreamedAnswer, WholeAnswer
from mcpmq.serving.chat_request import ChatRequest, parse_chat
from mcpmq.serving.engine_client import EngineClient
from mcpmq.serving.engine_process import EngineProcess
from mcpmq.serving.guard import Guard
from mcpmq.serving.invocation import parse_invocation
from mcpmq.serving.limits import Limits
from mcpmq.serving.metrics import CONTENT_TYPE, Metrics
from mcpmq.serving.page import PAGE_FILES, page_files
from mcpmq.serving.payload import make_payload
from mcpmq.serving.request_body import limited_request
from mcpmq.serving.request_error import RequestError, engine_unavailable
from mcpmq.serving.served_model import ServedModel

EVENT_STREAM = "text/event-stream"
PUBLIC_PATHS = frozenset({"/ping", *PAGE_FILES})  # without a key


class Api:
    """The routes of one served model."""

    def __init__(self, model: ServedModel, engine: EngineProcess, slots: int, limits: Limits) -> None:
        self._model, self._engine, self._limits = model, engine, limits
        self._admission, self._client = Admission(slots, limits), EngineClient(engine, limits)
        self.metrics = Metrics(self._admission, engine)
        # One thread parses bodies and decodes images, so that their memory is that of one request.
        self._decoder = ThreadPoolExecutor(1, "decoder")

    def routes(self) -> list[Route]:
        """Return all routes except those of the page."""
        return [
            Route("/ping", self.ping),
            Route("/invocations", self.invocations, methods=["POST"]),
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/metrics", self.show_metrics),
        ]

    async def ping(self, request: Request) -> Response:
        """Report whether the engine is ready."""
        if self._engine.socket is None:
            return engine_unavailable().response()
        return JSONResponse({"message": "ok"})

    async def models(self, request: Request) -> Response:
        """List the served model."""
        return JSONResponse({"object": "list", "data": [self._model.to_json()]})

    async def show_metrics(self, request: Request) -> Response:
        """Return the counters."""
        return PlainTextResponse(self.metrics.to_text(), media_type=CONTENT_TYPE)

    async def chat_completions(self, request: Request) -> Response:
        """Answer a chat; streamed if the body requests it."""
        async with self._admission.body():
            body = await limited_request(request, self._limits).body()
            chat = await self._in_decoder(partial(parse_chat, body, self._limits))
        if chat.stream:
            include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
            return StreamedAnswer(_without_usage(self._events(chat), include_usage), self._limits)
        return WholeAnswer(self._events(chat), lambda answer: answer)

    async def invocations(self, request: Request) -> Response:
        """Answer a prompt about one image, with the text as a JSON string, or as server-sent events."""
        async with self._admission.body():
            chat = await parse_invocation(limited_request(request, self._limits))
        if EVENT_STREAM in request.headers.get("accept", ""):
            return StreamedAnswer(self._events(chat), self._limits)
        return WholeAnswer(self._events(chat), lambda answer: answer["choices"][0]["message"]["content"])

    async def _events(self, chat: ChatRequest) -> AsyncIterator[bytes]:
        """Yield the events of the engine's answer, after the requests that came before."""
        async with self._admission.place():
            payload = await self._in_decoder(partial(make_payload, chat, self._limits, self._model.engine))
            async with self._admission.slot():
                async for event in self._client.events(payload):
                    self.metrics.count_event(event)
                    yield event

    async def _in_decoder(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoder, work)


async def _without_usage(events: AsyncIterator[bytes], include_usage: bool) -> AsyncIterator[bytes]:
    """Drop the event of the usage, which has no choices, unless the client requested it."""
    async for event in events:
        if include_usage or b'"usage"' not in event or b'"choices":[]' not in event:
            yield event


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = RequestError(error.status_code, error.detail).response()
    response.headers.update(error.headers or {})
    return response


async def _incomplete_body(request: Request, error: Exception) -> Response:
    return RequestError(400, "the body is not complete").response()


async def _internal_error(request: Request, error: Exception) -> Response:
    return RequestError(500, "internal error").response()


def make_app(api: Api, *, key: str | None, local: bool) -> Starlette:
    """Return the application; `local`: only names of this computer are accepted as host."""
    guard = Middleware(Guard, key=key, local=local, public=PUBLIC_PATHS, count=api.metrics.count_response)
    handlers: Any = {
        RequestError: _request_error,
        HTTPException: _http_error,
        ClientDisconnect: _incomplete_body,
        Exception: _internal_error,
    }
    return Starlette(routes=[*api.routes(), *page_files()], middleware=[guard], exception_handlers=handlers)
