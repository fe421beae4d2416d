"""Programs behind a front door, within the test's own process: each connection is handled as the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType

from diffkeeper_control.front_door.doors import Door, Order

Handler = Callable[["Program", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1: the answer to each request names the program and gives the body back."""
    while head := await read_head(reader):
        program.heads.append(head)
        body = await read_body(head, reader)
        if program.answer_after is not None:
            await program.answer_after.wait()
        text = program.name.encode() + b":" + body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        await writer.drain()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    lowered = head.lower()
    if b"transfer-encoding: chunked" in lowered:
        body = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        while (await reader.readline()).strip():
            pass
        return body
    if b"content-length: " in lowered:
        return await reader.readexactly(int(lowered.split(b"content-length: ")[1].split(b"\r\n")[0]))
    return b""


class Program:
    """Listens on a port of its own (or ``port``) within the block."""

    def __init__(self, name: str, handler: Handler = echo, port: int = 0) -> None:
        self.name = name
        self.heads: list[bytes] = []
        self.port = port
        self.connections = 0
        # Set by a test that wants answers to wait.
        self.answer_after: asyncio.Event | None = None
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Program:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """As SIGKILL would: connections are reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError):
                self.connections += 1
                await self._handler(self, reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()


class Client:
    """A raw client of a door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, door: Door) -> Client:
        order = door.order
        return cls(*await asyncio.open_connection(order.listen_host, order.listen_port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def get(self, path: str = "/") -> None:
        self.send(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())

    def post(self, body: bytes) -> None:
        self.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            return int(head.split()[1]), await read_body(head, self.reader)

    async def rest(self) -> bytes:
        async with asyncio.timeout(30):
            return await self.reader.read(-1)

    def close(self) -> None:
        self.writer.close()


def order(port: int, program: Program, **changes: object) -> Order:
    known: dict[str, object] = {
        "listen_host": "127.0.0.1",
        "listen_port": port,
        "protocol": "http",
        "state": "open",
        "site": program.name,
        "host": "127.0.0.1",
        "port": program.port,
    }
    return Order(**(known | changes))  # type: ignore[arg-type]


async def until(is_so: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert is_so(), what
