"""A TCP proxy that loses or holds back what one side says, or cuts the line, on command."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct


class LossyProxy:
    """Stands before one TCP server. While ``deaf`` is set, bytes from the server are read and thrown away."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.deaf = False  # server to client is lost
        self.mute = False  # client to server is lost
        self.holding = False  # client to server waits, also after the client is gone, until ``deliver``
        self._flowing = asyncio.Event()  # while unset, nothing is read from clients: their buffers fill
        self._flowing.set()
        self._held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"nats://{host}:{port}"

    async def cut(self) -> None:
        """End all connections; new ones are accepted."""
        for writer in list(self._writers):
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cut_clients(self) -> None:
        """End the clients' connections, and keep those to the server: what is held can still be delivered."""
        for writer in self._clients:
            writer.close()
        self._clients.clear()

    def stall(self) -> None:
        self._flowing.clear()

    def reset_clients(self) -> None:
        """End the clients' connections with a reset, as a process that is killed with unread bytes does."""
        self._flowing.set()
        for writer in self._clients:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._clients.clear()

    @property
    def held_bytes(self) -> int:
        return sum(len(data) for _, data in self._held)

    async def deliver(self) -> int:
        """Give the server what was held back; how many bytes that were."""
        self.holding = False
        held, self._held = self._held, []
        for writer, data in held:
            writer.write(data)
            await writer.drain()
        return sum(len(data) for _, data in held)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self._clients.append(writer)
        try:
            with contextlib.suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
                self._writers.add(up_writer)
                await asyncio.gather(self._pump_up(reader, up_writer), self._pump_down(up_reader, writer))
        finally:
            self._tasks.discard(task)

    async def _pump_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await self._flowing.wait() and (data := await reader.read(65_536)):
                if self.holding:
                    self._held.append((writer, data))
                elif not self.mute:
                    writer.write(data)
                    await writer.drain()
        if not any(held is writer for held, _ in self._held):
            writer.close()

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not self.deaf:
                    writer.write(data)
                    await writer.drain()
        writer.close()
