"""A child of the replicator that answers HTTP: started when it is needed, begun anew when it has ended, let go in order.

The child reads one line of settings from its standard input, prints the port it listens on, and ends when that
input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import aiohttp
import msgspec
from aiohttp import web

from diffkeeper.domain import errors

_END_TIMEOUT_S = 10.0


class ChildProcess:
    """``what`` is how people call it ("history"): in messages and in the reason ``WHAT-lost``."""

    def __init__(self, what: str, module: str, settings: msgspec.Struct, start_timeout_s: float) -> None:
        self._what = what
        self._module = module
        self._settings = settings
        self._start_timeout_s = start_timeout_s
        self._changing = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._address = ""
        self._closed = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def running(self) -> tuple[aiohttp.ClientSession, str]:
        """A session and the address to use it with; of a child that is started if there is none."""
        async with self._changing:
            if self._closed:
                raise self.lost("this replicator is ending")
            if not self.is_running or self._session is None:
                await self._end()
                await self._start()
            assert self._session is not None, "it was started"
            return self._session, self._address

    def lost(self, why: str, hint: str = "try again") -> errors.Transient:
        return errors.Transient(why, reason=f"{self._what}-lost", hint=hint)

    def no_answer(self, error: Exception) -> errors.Transient:
        return self.lost(
            f"the {self._what} process did not answer: {error}; it is started anew if it has ended"
        )

    async def _start(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        process.stdin.write(msgspec.json.encode(self._settings) + b"\n")
        try:
            line = await asyncio.wait_for(process.stdout.readline(), self._start_timeout_s)
            port = int(line)
        except BaseException as error:
            # Also when the call that wanted it was cancelled: nobody would know of it.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if not isinstance(error, TimeoutError | ValueError):
                raise
            raise self.lost(
                f"the {self._what} process did not start; the replicator's log says why",
                "look into the replicator's log",
            ) from error
        self._process, self._address = process, f"http://127.0.0.1:{port}"
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def rest(self) -> None:
        """End it; it is started again when it is needed."""
        async with self._changing:
            await self._end()

    async def close(self) -> None:
        """End it for good."""
        async with self._changing:
            self._closed = True
            await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if process is not None and process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _END_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()


def passed_on(request: web.Request, token: str) -> dict[str, str]:
    """The headers with which a call of the outside world goes on to the child."""
    headers = {"Authorization": f"Bearer {token}"}
    if "Content-Type" in request.headers:
        headers["Content-Type"] = request.headers["Content-Type"]
    return headers
