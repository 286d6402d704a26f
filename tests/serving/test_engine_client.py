"""Answers of the engine: cancellation, time limits, crashes, and errors without paths."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest

from mcpmq.serving.engine_client import EngineClient, _engine_error
from mcpmq.serving.engine_process import EngineProcess
from mcpmq.serving.limits import LIMITS
from mcpmq.serving.request_error import RequestError
from tests.serving.requests import CHAT, chat

LONG = chat("Hi", max_tokens=400, ignore_eos=True)


async def _all(events: AsyncIterator[bytes]) -> list[bytes]:
    return [event async for event in events]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error": {"message": "too long"}}', "too long"),
        (400, b'{"error": {"message": "failed to open /tmp/a.gguf"}}', "the engine does not accept the request"),
        (413, b'{"error": {"message": "too large"}}', "too large"),
        (500, b'{"error": {"message": "GGML_ASSERT"}}', "the engine failed"),
        (500, b'{"error": {"message": "The model produced output that does not match x"}}', "requested format"),
        (500, b"not JSON", "the engine failed"),
        (401, b'{"error": "key"}', "the engine failed"),
    ],
)
def test_errors_have_no_paths(status: int, body: bytes, message: str) -> None:
    """Messages about the request reach the client, others are replaced."""
    error = _engine_error(status, body)

    assert message in str(error)
    assert error.status == (500 if message == "the engine failed" else status if status == 413 else 400)


def test_a_time_limit_ends_the_answer(engine: EngineProcess) -> None:
    """An answer that takes too long is an error; the engine stays, because it responds."""
    starts = engine.starts
    client = EngineClient(engine, replace(LIMITS, seconds=0.01))

    with pytest.raises(RequestError, match=r"more than 0\.01 seconds"):
        asyncio.run(_all(client.events({**LONG, "stream": True})))

    assert engine.starts == starts
    assert engine.socket


def test_an_engine_that_does_not_respond_is_restarted(engine: EngineProcess) -> None:
    """After a time limit without a reply to a probe, the process is replaced."""
    starts = engine.starts
    client = EngineClient(engine, replace(LIMITS, seconds=0.01, probe_seconds=0.0))

    with pytest.raises(RequestError):
        asyncio.run(_all(client.events({**LONG, "stream": True})))
    while engine.socket is None or engine.starts == starts:
        time.sleep(0.01)

    assert engine.starts == starts + 1


def test_a_crash_in_an_answer_is_an_error(engine: EngineProcess) -> None:
    """The message for the client is to try again."""

    async def crash() -> list[bytes]:
        events = EngineClient(engine, LIMITS).events({**LONG, "stream": True})
        await anext(events)
        assert engine._process
        engine._process.kill()
        return await _all(events)

    starts = engine.starts
    with pytest.raises(RequestError, match="ended before its answer was complete") as caught:
        asyncio.run(crash())
    while engine.starts == starts:
        time.sleep(0.01)

    assert caught.value.status == 503


def _answering(client: httpx2.Client) -> bool:
    return "mcpmq_requests_answering 1" in client.get("/metrics").text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_slot(client: httpx2.Client, stream: bool) -> None:
    """The answer of a client that disconnects is canceled, whether it was streamed or not."""
    if stream:
        with client.stream("POST", CHAT, json={**LONG, "stream": True}) as response:
            next(response.iter_raw())
    else:
        with pytest.raises(httpx2.TimeoutException):
            client.post(CHAT, json=LONG, timeout=0.01)
    start = time.monotonic()
    while _answering(client):
        assert time.monotonic() - start < 5

    assert client.post(CHAT, json=chat("Hi")).status_code == 200
