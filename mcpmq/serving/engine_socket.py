"""An HTTP exchange over a Unix socket; its end closes the connection, and so ends the work of the engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11

READ_NBYTES = 1 << 16


class Exchange:
    """A request that was sent, and its response."""

    def __init__(self, reader: asyncio.StreamReader, protocol: h11.Connection) -> None:
        self._reader, self._protocol = reader, protocol
        self.status = 0

    async def receive_status(self) -> None:
        """Receive the headers.

        Raises:
            ConnectionError: the engine has closed the connection.
        """
        event = await self._event()
        while not isinstance(event, h11.Response):
            event = await self._event()
        self.status = event.status_code

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the parts of the body as they arrive.

        Raises:
            ConnectionError: the engine has closed the connection before the end.
        """
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def body(self) -> bytes:
        """Return the whole body."""
        return b"".join([part async for part in self.parts()])

    async def _event(self) -> object:
        try:
            while (event := self._protocol.next_event()) is h11.NEED_DATA:
                self._protocol.receive_data(await self._reader.read(READ_NBYTES))
        except h11.RemoteProtocolError as error:
            raise ConnectionError(str(error)) from error
        return event


@asynccontextmanager
async def exchange(socket: Path, method: str, path: str, key: str, body: bytes = b"") -> AsyncIterator[Exchange]:
    """Send a request and yield its response, of which the headers were received.

    Raises:
        OSError: the engine does not listen, or closed the connection.
    """
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        protocol = h11.Connection(h11.CLIENT)
        for event in (_request(method, path, key, body), h11.Data(data=body), h11.EndOfMessage()):
            writer.write(protocol.send(event) or b"")
        found = Exchange(reader, protocol)
        await asyncio.gather(writer.drain(), found.receive_status())
        yield found
    finally:
        writer.transport.abort()


def _request(method: str, path: str, key: str, body: bytes) -> h11.Request:
    headers = [("Host", "engine"), ("Authorization", f"Bearer {key}"), ("Content-Length", str(len(body)))]
    return h11.Request(method=method, target=path, headers=[*headers, ("Content-Type", "application/json")])
