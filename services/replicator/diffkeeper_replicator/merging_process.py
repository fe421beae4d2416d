"""The replicator's side of its merging process: starts it where there are shared volumes, begins it again when it
ends, and passes calls on to it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import structlog
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import errors
from diffkeeper_replicator.child_process import ChildProcess, passed_on
from diffkeeper_replicator.merging_service.merging_main import MergingSettings

START_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.5
_CALL_TIMEOUT_S = 60.0
_MODULE = "diffkeeper_replicator.merging_service.merging_main"
_log = structlog.get_logger("merging")


class MergingProcess:
    """One a replicator. ``run`` is a task of the service; ``close`` ends the child."""

    def __init__(self, wanted: MergingSettings) -> None:
        self._wanted = wanted
        self._child = ChildProcess("merging", _MODULE, wanted, START_TIMEOUT_S)
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
        return self._child.pid

    def _is_wanted(self) -> bool:
        return any(Path(self._wanted.dir).glob("*/shared.json"))

    async def run(self) -> None:
        while not self._closed:
            if not self._child.is_running and self._is_wanted():
                try:
                    await self._child.running()
                except errors.DiffKeeperError as error:
                    _log.warning("the merging process could not be started", error=error.message)
            await asyncio.sleep(LOOK_EVERY_S)

    async def every(self, request: web.Request) -> web.Response:
        """A site without shared volumes has no such process."""
        if not self._is_wanted():
            return http.json_response({"site": self._wanted.site, "volumes": []})
        return await self.pass_on(request)

    async def pass_on(self, request: web.Request) -> web.Response:
        session, address = await self._child.running()
        try:
            async with session.request(
                request.method,
                address + str(request.rel_url),
                data=await request.read(),
                headers=passed_on(request, self._wanted.token),
                timeout=aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S),
            ) as answer:
                return web.Response(
                    status=answer.status, body=await answer.read(), content_type=answer.content_type
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._child.no_answer(error) from error

    async def close(self) -> None:
        self._closed = True
        await self._child.close()
