"""What a merging process answers; the table of calls is in ARCHITECTURE.md."""

from __future__ import annotations

import base64
import time
from typing import Any

import msgspec
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import clocks, errors, moments
from diffkeeper_replicator.merging_service import reports, undoing
from diffkeeper_replicator.merging_service.shared_role import SharedRole
from diffkeeper_replicator.merging_service.shared_volumes import SharedVolumes


class _Choice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    choice: str


class _Undo(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    path_b64: str
    by: str
    # A time with a zone, or an age; null: from the beginning.
    since: str | None = None
    dry_run: bool = False


class MergingApi:
    def __init__(self, shared: SharedVolumes) -> None:
        self._shared = shared

    def add_routes(self, app: web.Application) -> None:
        app.add_routes(
            [
                web.get("/v1/shared", self.every),
                web.put("/v1/shared/{volume}", self.put_role),
                web.get("/v1/shared/{volume}", self.one),
                web.get("/v1/shared/{volume}/conflicts", self.conflicts),
                web.post("/v1/shared/{volume}/conflicts/{conflict}", self.resolve),
                web.get("/v1/shared/{volume}/blame", self.blame),
                web.post("/v1/shared/{volume}/undo", self.undo),
            ]
        )

    async def every(self, _: web.Request) -> web.Response:
        found = [await volume.status() for volume in self._shared.all()]
        return http.json_response({"site": self._shared.site, "volumes": found})

    async def put_role(self, request: web.Request) -> web.Response:
        role = await http.read_body(request, SharedRole)
        volume = await self._shared.put_role(request.match_info["volume"], role)
        return http.json_response(await volume.status())

    async def one(self, request: web.Request) -> web.Response:
        return http.json_response(await self._shared.get(request.match_info["volume"]).status())

    async def conflicts(self, request: web.Request) -> web.Response:
        volume = self._shared.get(request.match_info["volume"])
        return http.json_response(
            {
                "volume": volume.volume,
                "site": self._shared.site,
                "conflicts": await volume.use(reports.conflicts),
                "rules": await volume.use(lambda engine: engine.state.rules.shown()),
            }
        )

    async def resolve(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _Choice)
        volume, name = self._shared.get(request.match_info["volume"]), request.match_info["conflict"]
        answer = await volume.use(lambda engine: reports.resolve(engine, name, body.choice))
        return http.json_response(answer)

    async def blame(self, request: web.Request) -> web.Response:
        volume, path = self._shared.get(request.match_info["volume"]), _path(request)
        answer: dict[str, Any] = await volume.use(lambda engine: reports.blame(engine, path))
        return http.json_response({"volume": volume.volume, "site": self._shared.site, **answer})

    async def undo(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _Undo)
        volume = self._shared.get(request.match_info["volume"])
        since = 0 if body.since is None else _since(body.since)
        asked = undoing.Asked(_decoded(body.path_b64), body.by, since, body.dry_run)
        answer = await volume.undo(asked)
        return http.json_response({"volume": volume.volume, "site": self._shared.site, **answer})


def _since(text: str) -> clocks.Stamp:
    match moments.parse(text):
        case moments.AtTime(unix_us=at_us):
            return clocks.from_micros(at_us)
        case moments.Ago(micros=age_us):
            return clocks.from_micros(max(time.time_ns() // 1000 - age_us, 0))
    raise errors.Refused(
        f"{text!r} is no time from which edits could be taken back",
        reason="bad-when",
        hint="a time with a zone (2026-01-02T15:04:05Z) or an age (5m)",
    )


def _path(request: web.Request) -> bytes:
    if "path_b64" in request.query:
        return _decoded(request.query["path_b64"])
    if "path" not in request.query:
        raise errors.Refused("which path?", reason="bad-request")
    return request.query["path"].encode()


def _decoded(path_b64: str) -> bytes:
    try:
        return base64.b64decode(path_b64, validate=True)
    except ValueError as error:
        raise errors.Refused("path_b64 is not base64", reason="bad-request") from error
