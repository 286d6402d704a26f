"""The response to a chat: streamed or whole; its work ends when the client disconnects."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from mcpmq.serving.completion import gather
from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError

EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # of nginx, which would hold events back
]
DONE = b"data: [DONE]\n\n"


class StreamedAnswer(Response):
    """Server-sent events, sent when they arrive.

    They are read as fast as the engine writes them: a client that reads slowly does not occupy a slot.
    """

    def __init__(self, events: AsyncIterator[bytes], limits: Limits) -> None:
        self._events, self._limits = events, limits
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue: asyncio.Queue[bytes | RequestError | None] = asyncio.Queue()
        reading = asyncio.create_task(self._read(queue))
        try:
            first = await queue.get()
            if isinstance(first, RequestError):
                await first.response()(scope, receive, send)
                return
            await self._send_events(first, queue, send)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def _read(self, queue: "asyncio.Queue[bytes | RequestError | None]") -> None:
        """Put all events, then the error if there is one, then None into the queue."""
        try:
            async with aclosing(self._events) as events:  # type: ignore[type-var]
                async for event in events:
                    queue.put_nowait(event)
        except RequestError as error:
            queue.put_nowait(error)
        except Exception:
            queue.put_nowait(RequestError(500, "internal error"))
            raise
        finally:
            queue.put_nowait(None)

    async def _send_events(
        self, event: bytes | None, queue: "asyncio.Queue[bytes | RequestError | None]", send: Send
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM_HEADERS})
        item: bytes | RequestError | None = event
        while item is not None:
            content = json.dumps(item.content()).encode() if isinstance(item, RequestError) else item
            await self._write(send, b"data: %b\n\n" % content, more=True)
            item = await queue.get()
        await self._write(send, DONE, more=False)

    async def _write(self, send: Send, body: bytes, *, more: bool) -> None:
        async with asyncio.timeout(self._limits.write_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})


class WholeAnswer(Response):
    """The JSON of a whole answer, or a part of it."""

    def __init__(self, events: AsyncIterator[bytes], convert: Callable[[dict[str, Any]], Any]) -> None:
        self._events, self._convert = events, convert
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            try:
                response: Response = JSONResponse(self._convert(await gather(events)))
            except RequestError as error:
                response = error.response()
        await response(scope, receive, send)


async def until_disconnect(receive: Receive, work: Any) -> None:
    """Await the work; cancel it if the client disconnects, which is the next message after the body."""
    answering, leaving = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not answering.done():
            answering.cancel()
        results = await asyncio.gather(answering, leaving, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _disconnected(receive: Receive) -> None:
    message: Message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
