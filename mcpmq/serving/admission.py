"""Admission of requests: a bounded queue in front of the slots of the engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcpmq.serving.limits import Limits
from mcpmq.serving.request_error import RequestError


class Admission:
    """Counts the requests that are received, that wait, and that the engine answers."""

    def __init__(self, slots: int, limits: Limits) -> None:
        self._slots, self._places, self._bodies = asyncio.Semaphore(slots), slots + limits.queue, limits.bodies
        self.admitted, self.answering, self.receiving = 0, 0, 0

    @asynccontextmanager
    async def body(self) -> AsyncIterator[None]:
        """Count a body that is received and parsed.

        Raises:
            RequestError: the queue is full, or too many bodies are received.
        """
        self._check_queue()
        if self.receiving >= self._bodies:
            raise RequestError(503, f"{self.receiving} requests are being received; try again")
        self.receiving += 1
        try:
            yield
        finally:
            self.receiving -= 1

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Take a place in the queue, until the answer is complete.

        Raises:
            RequestError: the queue is full.
        """
        self._check_queue()
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot of the engine, in the order of arrival."""
        async with self._slots:
            self.answering += 1
            try:
                yield
            finally:
                self.answering -= 1

    def _check_queue(self) -> None:
        if self.admitted >= self._places:
            raise RequestError(503, f"{self.admitted} requests are in the queue; try again")
