"""A TCP proxy that loses what one side says, or cuts the line, on command."""

from __future__ import annotations

import asyncio
import contextlib


class LossyProxy:
    """Stands before one TCP server. While ``deaf`` is set, bytes from the server are read and thrown away."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.deaf = False  # server to client is lost
        self.mute = False  # client to server is lost
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"nats://{host}:{port}"

    async def cut(self) -> None:
        """End all connections; new ones are accepted."""
        for writer in list(self._writers):
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
                self._writers.add(up_writer)
                await asyncio.gather(
                    self._pump(reader, up_writer, "mute"), self._pump(up_reader, writer, "deaf")
                )
        finally:
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, loses: str) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65_536):
                    if not getattr(self, loses):
                        writer.write(data)
                        await writer.drain()
        finally:
            writer.close()
            self._writers.discard(writer)
