"""The replicator's side of its history process: starts it when it is needed, passes calls on to it, has it
take in what the journals have, and lets it go when nobody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import structlog
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import errors
from diffkeeper_replicator.child_process import ChildProcess, passed_on
from diffkeeper_replicator.history_main import HistorySettings

START_TIMEOUT_S = 30.0
# How often it is looked whether a journal has grown by so much that a checkpoint may be due.
LOOK_EVERY_S = 15.0
GROWN_BYTES = 48 * 1024 * 1024
IDLE_S = 120.0
_PASSED_ON = ("Content-Type", "Content-Length", "X-Diffkeeper-Position", "X-Diffkeeper-At-Us")
_MODULE = "diffkeeper_replicator.history_main"
_BLOCK_BYTES = 256 * 1024

_log = structlog.get_logger("history")


class HistoryProcess:
    """One a replicator. ``run`` is a task of the service; ``close`` ends the child."""

    def __init__(
        self,
        wanted: HistorySettings,
        journal_bytes: Callable[[], dict[str, int]],
        trim: Callable[[str, int], Awaitable[int]],
    ) -> None:
        self._wanted = wanted
        self._trim = trim
        # Of each volume, how large its journal is.
        self._journal_bytes = journal_bytes
        self._child = ChildProcess("history", _MODULE, wanted, START_TIMEOUT_S)
        self._used_at = 0.0
        self._busy = 0
        self._taken_in: dict[str, int] = {}

    @property
    def pid(self) -> int | None:
        """Of the child that runs; None without one."""
        return self._child.pid if self._child.is_running else None

    def add_routes(self, app: web.Application) -> None:
        app.add_routes(
            [
                web.route("*", "/v1/volumes/{volume}/history", self.pass_on),
                web.post("/v1/volumes/{volume}/history/prune", self.prune),
                web.route("*", "/v1/volumes/{volume}/history/{tail:.*}", self.pass_on),
                web.get("/v1/chunks/{hash}", self.pass_on),
            ]
        )

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Once: have it take in what has grown much; end it when it has nothing to do."""
        sizes = await asyncio.to_thread(self._journal_bytes)
        grown = {
            volume for volume, size in sizes.items() if size - self._taken_in.get(volume, 0) >= GROWN_BYTES
        }
        if grown:
            try:
                await self.call("POST", "/v1/grow", timeout_s=3600.0)
                self._taken_in.update(sizes)
                for volume in sorted(grown):
                    await self.prune_volume(volume)
                self._taken_in.update(await asyncio.to_thread(self._journal_bytes))
            except errors.DiffKeeperError as error:
                _log.warning("the history could not grow", error=error.message)
        elif self._child.is_running and not self._busy and time.monotonic() - self._used_at > IDLE_S:
            await self._child.rest()

    async def call(self, method: str, path: str, body: object = None, timeout_s: float = 60.0) -> object:
        """One call with a JSON answer."""
        async with self._in_use() as (session, address):
            return await http.call(
                session, method, address + path, token=self._wanted.token, body=body, timeout_s=timeout_s
            )

    async def pass_on(self, request: web.Request) -> web.StreamResponse:
        """A call of the outside world, its answer block by block as it comes."""
        async with self._in_use() as (session, address):
            headers = passed_on(request, self._wanted.token)
            # What is filled from here later asks here.
            headers["X-Diffkeeper-Replicator"] = f"{request.scheme}://{request.host}"
            try:
                async with session.request(
                    request.method,
                    address + str(request.rel_url),
                    data=await request.read(),
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=None, connect=10.0),
                ) as answer:
                    kept = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
                    response = web.StreamResponse(status=answer.status, headers=kept)
                    await response.prepare(request)
                    async for block in answer.content.iter_chunked(_BLOCK_BYTES):
                        await response.write(block)
                    await response.write_eof()
                    return response
            except (aiohttp.ClientError, OSError) as error:
                raise self._child.no_answer(error) from error

    async def prune(self, request: web.Request) -> web.Response:
        return http.json_response(await self.prune_volume(request.match_info["volume"]))

    async def prune_volume(self, volume: str) -> dict[str, Any]:
        """Have the policy applied, and let go of what the journal holds twice since."""
        path = f"/v1/volumes/{quote(volume, safe='')}/history/prune"
        done: Any = await self.call("POST", path, timeout_s=3600.0)
        freed = await self._trim(volume, int(done["archived"])) if done["archived"] else 0
        return {**done, "journal_bytes": freed}

    async def close(self) -> None:
        await self._child.close()

    @contextlib.asynccontextmanager
    async def _in_use(self) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
        self._busy += 1
        try:
            yield await self._child.running()
        finally:
            self._busy -= 1
            self._used_at = time.monotonic()
