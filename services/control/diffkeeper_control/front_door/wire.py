"""One TCP connection with a buffer that a parser may look into, bounded in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from diffkeeper_control.front_door import heads
from diffkeeper_control.front_door.bodies import BodyReader

READ_BYTES = 64 * 1024
# How much of what was written may wait in memory for a slow reader.
WRITE_BUFFER_BYTES = 256 * 1024


# Before a connection is closed on a client that still sends, so that it reads our answer and no reset.
LINGER_S = 0.5


class Cut(Exception):
    """The connection ended in the middle of a message."""


class SinkCut(Cut):
    """The side that was written to is gone."""


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.buffer = bytearray()
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        # Whether anything at all was received since ``forget``.
        self.heard = False

    @property
    def peer(self) -> str:
        name = self._writer.get_extra_info("peername")
        return str(name[0]) if name else "unknown"

    @property
    def is_fresh(self) -> bool:
        """Nothing has come unasked, and it is not closed as far as is known."""
        return not self.buffer and not self._reader.at_eof() and not self._writer.is_closing()

    async def fill(self) -> bool:
        """Wait for more bytes; False at the end of the stream. Raises Cut when the connection broke."""
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            raise Cut(str(error)) from error
        self.buffer += data
        if data:
            self.heard = True
        return bool(data)

    async def read_head(self) -> bytes | None:
        """A head without its empty line; None when the stream ended before it began. Raises Cut, BadMessage."""
        searched = 0
        while True:
            while self.buffer.startswith(b"\r\n"):
                del self.buffer[:2]  # some clients end a body with one line end too many
                searched = 0
            end = self.buffer.find(heads.END, max(0, searched - 3))
            if end > heads.HEAD_MAX_BYTES or (end < 0 and len(self.buffer) > heads.HEAD_MAX_BYTES):
                raise heads.BadMessage(431, f"the head is larger than {heads.HEAD_MAX_BYTES} bytes")
            if end >= 0:
                head = bytes(self.buffer[:end])
                del self.buffer[: end + len(heads.END)]
                return head
            searched = len(self.buffer)
            if not await self.fill():
                if self.buffer:
                    raise Cut("it ended within a head")
                return None

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def flush(self) -> None:
        """Wait while too much is unsent. Raises Cut."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise Cut(str(error)) from error

    async def pass_on(self, body: BodyReader, other: Wire) -> None:
        """Send a body that comes from here to ``other``, piece by piece. Raises Cut, BadMessage."""
        while True:
            count = body.take(self.buffer)
            if count:
                other.write(bytes(self.buffer[:count]))
                del self.buffer[:count]
                try:
                    await other.flush()
                except Cut as error:
                    raise SinkCut(str(error)) from error
            if body.done:
                return
            if not await self.fill() and not body.end():
                raise Cut("it ended within a body")

    def end_sending(self) -> None:
        """Nothing more is sent; what comes is still read."""
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof() and not self._writer.is_closing():
                self._writer.write_eof()

    def abort(self) -> None:
        """Close at once; what was not sent is dropped."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close once everything written is sent and the other side has closed too, within reason."""
        self.end_sending()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while await self._reader.read(READ_BYTES):
                    pass
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await self._writer.wait_closed()


async def connect(host: str, port: int, timeout_s: float) -> Wire:
    """Raises OSError (TimeoutError is one) when nobody accepts there."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port, limit=READ_BYTES)
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.getsockname() == sock.getpeername():
        # A free port of the ephemeral range may be connected with itself.
        writer.transport.abort()
        raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
    return Wire(reader, writer)


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address of ``host``. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _name, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.setblocking(False)
            sock.listen(1024)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
