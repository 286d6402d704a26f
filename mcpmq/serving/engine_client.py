"""Read answers from the engine's Unix socket as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from mcpmq.serving.engine_process import EngineProcess
from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError, engine_unavailable

CHAT = "http://engine/v1/chat/completions"
METRICS = "http://engine/metrics"  # a reply shows that the engine's main loop runs
PREFIX, END = b"data: ", b"[DONE]"
MAX_EVENT_NBYTES = 1 << 20
ENGINE_FAILED = "the engine failed"


class EngineClient:
    """Requests to the engine; one connection for every answer, so that its end cancels the answer."""

    def __init__(self, engine: EngineProcess, limits: Limits) -> None:
        self._engine, self._limits = engine, limits

    async def events(self, payload: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Yield the JSON of every event of an answer; ending the iteration cancels the answer.

        Raises:
            RequestError: the engine does not accept the request, is not ready, failed, or exceeded the time limit.
        """
        try:
            async with asyncio.timeout(self._limits.seconds), self._streamed(payload) as response:
                if response.status_code != 200:
                    raise _engine_error(response.status_code, await response.aread())
                async for event in _events(response):
                    yield event
        except TimeoutError:
            await self._restart_if_unresponsive()
            raise RequestError(503, f"the answer took more than {self._limits.seconds:g} seconds") from None
        except httpx2.ConnectError:
            raise engine_unavailable() from None
        except httpx2.HTTPError:
            raise RequestError(503, "the engine ended before its answer was complete; try again") from None

    @asynccontextmanager
    async def _streamed(self, payload: Mapping[str, Any]) -> AsyncIterator[httpx2.Response]:
        async with self._connected() as client, client.stream("POST", CHAT, json=payload) as response:
            yield response

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[httpx2.AsyncClient]:
        if (socket := self._engine.socket) is None:
            raise engine_unavailable()
        transport = httpx2.AsyncHTTPTransport(uds=str(socket))
        options: Any = {"headers": self._engine.headers, "timeout": None, "trust_env": False}
        async with httpx2.AsyncClient(transport=transport, **options) as client:
            yield client

    async def _restart_if_unresponsive(self) -> None:
        try:
            async with asyncio.timeout(self._limits.probe_seconds), self._connected() as client:
                await client.get(METRICS)
        except (TimeoutError, httpx2.HTTPError):
            self._engine.restart()
        except RequestError:  # it has ended
            return


async def _events(response: httpx2.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for part in response.aiter_raw():
        *blocks, rest = (rest + part).split(b"\n\n")
        for block in blocks:
            if block.startswith(PREFIX) and (event := block.removeprefix(PREFIX)) != END:
                if event.startswith(b'{"error"'):
                    raise _engine_error(500, event)
                yield event
        if len(rest) > MAX_EVENT_NBYTES:
            raise RequestError(500, ENGINE_FAILED)


def _engine_error(status: int, body: bytes) -> RequestError:
    """Return the error for the client: the engine's message about its request, without paths."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = ENGINE_FAILED
    if status != 400:
        return RequestError(500, ENGINE_FAILED)
    return RequestError(400, "the engine does not accept the request" if "/" in message else message)
