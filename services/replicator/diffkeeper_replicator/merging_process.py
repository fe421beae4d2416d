"""The replicator's side of its merging process: starts it where there are shared volumes, begins it again when it
ends, and passes calls on to it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import msgspec
import structlog
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import errors
from diffkeeper_replicator.merging_service.merging_main import MergingSettings

START_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.5
_CALL_TIMEOUT_S = 60.0
_log = structlog.get_logger("merging")


class MergingProcess:
    """One a replicator. ``run`` is a task of the service; ``close`` ends the child."""

    def __init__(self, wanted: MergingSettings) -> None:
        self._wanted = wanted
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._address = ""
        self._closed = False

    def add_routes(self, app: web.Application) -> None:
        app.add_routes(
            [
                web.get("/v1/shared", self.every),
                web.route("*", "/v1/shared/{volume}", self.pass_on),
                web.route("*", "/v1/shared/{volume}/{tail:.*}", self.pass_on),
            ]
        )

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _is_wanted(self) -> bool:
        return any(Path(self._wanted.dir).glob("*/shared.json"))

    async def run(self) -> None:
        while not self._closed:
            gone = self._process is None or self._process.returncode is not None
            if gone and self._is_wanted():
                try:
                    await self._running()
                except errors.DiffKeeperError as error:
                    _log.warning("the merging process could not be started", error=error.message)
            await asyncio.sleep(LOOK_EVERY_S)

    async def every(self, request: web.Request) -> web.Response:
        """A site without shared volumes has no such process."""
        if not self._is_wanted():
            return http.json_response({"site": self._wanted.site, "volumes": []})
        return await self.pass_on(request)

    async def pass_on(self, request: web.Request) -> web.Response:
        session, address = await self._running()
        headers = {"Authorization": f"Bearer {self._wanted.token}"}
        if "Content-Type" in request.headers:
            headers["Content-Type"] = request.headers["Content-Type"]
        try:
            async with session.request(
                request.method,
                address + str(request.rel_url),
                data=await request.read(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S),
            ) as answer:
                return web.Response(
                    status=answer.status, body=await answer.read(), content_type=answer.content_type
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise errors.Transient(
                f"the merging process did not answer: {error}; it is started anew if it has ended",
                reason="merging-lost",
                hint="try again",
            ) from error

    async def _running(self) -> tuple[aiohttp.ClientSession, str]:
        async with self._starting:
            if self._closed:
                raise errors.Transient("this replicator is ending", reason="merging-lost", hint="try again")
            if self._process is None or self._process.returncode is not None or self._session is None:
                await self._end()
                await self._start()
            assert self._session is not None, "it was started"
            return self._session, self._address

    async def _start(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "diffkeeper_replicator.merging_service.merging_main",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        process.stdin.write(msgspec.json.encode(self._wanted) + b"\n")
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
            port = int(line)
        except (TimeoutError, ValueError) as error:
            if process.returncode is None:
                process.kill()
            await process.wait()
            raise errors.Transient(
                "the merging process did not start; the replicator's log says why",
                reason="merging-lost",
                hint="look into the replicator's log",
            ) from error
        self._process, self._address = process, f"http://127.0.0.1:{port}"
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def close(self) -> None:
        async with self._starting:
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
                await asyncio.wait_for(process.wait(), 10.0)
            except TimeoutError:
                process.kill()
                await process.wait()
