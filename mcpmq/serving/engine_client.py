"""Read answers from the engine's Unix socket as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from mcpmq.serving.engine_process import EngineProcess
from mcpmq.serving.engine_socket import Exchange, exchange
from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError, engine_unavailable

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
METRICS = "/metrics"  # a reply shows that the engine's main loop runs
PREFIX, END = b"data: ", b"[DONE]"
MAX_EVENT_NBYTES = 1 << 20
UNPARSED = "The model produced output that does not match"  # of llama.cpp, e.g. for a pattern that it does not support
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
        if (socket := self._engine.socket) is None:
            raise engine_unavailable()
        body = json.dumps(payload).encode()
        try:
            async with (
                asyncio.timeout(self._limits.seconds),
                exchange(socket, "POST", CHAT, self._engine.key, body) as response,
            ):
                if response.status != 200:
                    raise _engine_error(response.status, await response.body())
                async for event in _events(response):
                    yield event
        except TimeoutError:
            await self._restart_if_unresponsive()
            raise RequestError(503, f"the answer took more than {self._limits.seconds:g} seconds") from None
        except (ConnectionRefusedError, FileNotFoundError):
            raise engine_unavailable() from None
        except OSError:
            raise RequestError(503, "the engine ended before its answer was complete; try again") from None

    async def trained_context(self) -> int:
        """Return the tokens that llama.cpp's model was trained for; the context of a slot is limited to them.

        Raises:
            OSError: the engine has ended.
        """
        assert self._engine.socket
        async with exchange(self._engine.socket, "GET", MODELS, self._engine.key) as response:
            [model] = json.loads(await response.body())["data"]
        return int(model["meta"]["n_ctx_train"])

    async def _restart_if_unresponsive(self) -> None:
        if (socket := self._engine.socket) is None:
            return
        try:
            async with (
                asyncio.timeout(self._limits.probe_seconds),
                exchange(socket, "GET", METRICS, self._engine.key) as response,
            ):
                await response.body()
        except OSError:  # TimeoutError is one
            self._engine.restart()


async def _events(response: Exchange) -> AsyncIterator[bytes]:
    rest = b""
    async for part in response.parts():
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
    if UNPARSED in message:
        return RequestError(400, "the answer does not have the requested format", "response_format")
    if status not in (400, 413):
        return RequestError(500, ENGINE_FAILED)
    return RequestError(status, "the engine does not accept the request" if "/" in message else message)
