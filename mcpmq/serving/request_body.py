"""Receive the body of a request within limits of size and time."""

import asyncio

from starlette.requests import Request
from starlette.types import Message, Receive

from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError


def limited_request(request: Request, limits: Limits) -> Request:
    """Return a request whose body ends with a RequestError if it exceeds a limit.

    Raises:
        RequestError: the declared length exceeds the limit.
    """
    _check_length(request.headers.get("content-length", "0"), limits)
    return Request(request.scope, _LimitedReceive(request.receive, limits))


def _check_length(length: str, limits: Limits) -> None:
    if not length.isdecimal() or int(length[:20]) > limits.body_nbytes:
        raise _too_large(limits)


class _LimitedReceive:
    """The `receive` of a request, which counts bytes and time."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._nbytes, self._end = 0, asyncio.get_running_loop().time() + limits.body_seconds

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(408, f"the body took more than {self._limits.body_seconds:g} seconds") from None
        self._nbytes += len(message.get("body", b""))
        if self._nbytes > self._limits.body_nbytes:
            raise _too_large(self._limits)
        return message


def _too_large(limits: Limits) -> RequestError:
    return RequestError(413, f"the body has more than {limits.body_nbytes:,} bytes")
