"""The admin API of a replicator; the table of calls is in ARCHITECTURE.md."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from diffkeeper import __version__, http
from diffkeeper.domain import errors, positions
from diffkeeper_replicator import reports
from diffkeeper_replicator.cursor import Role
from diffkeeper_replicator.replicator import Replicator

_LOG_ROWS = 100


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Epoch(_Body):
    epoch: int


class _CatchUp(_Body):
    position: str | None = None
    timeout_s: float = 10.0


class _PrepareFollow(_Body):
    timeout_s: float = 10.0


def add_routes(app: web.Application, replicator: Replicator, now_us: Callable[[], int]) -> None:
    calls = _Calls(replicator, now_us)
    app.add_routes(
        [
            web.get("/healthz", calls.health),
            web.get("/v1/status", calls.status),
            web.put("/v1/volumes/{volume}", calls.put_role),
            web.get("/v1/volumes/{volume}", calls.volume),
            web.post("/v1/volumes/{volume}/promise", calls.promise),
            web.post("/v1/volumes/{volume}/catch-up", calls.catch_up),
            web.post("/v1/volumes/{volume}/promote", calls.promote),
            web.post("/v1/volumes/{volume}/prepare-promote", calls.prepare_promote),
            web.post("/v1/volumes/{volume}/prepare-follow", calls.prepare_follow),
            web.post("/v1/volumes/{volume}/rebuild", calls.rebuild),
            web.get("/v1/volumes/{volume}/log", calls.log),
            web.get("/v1/volumes/{volume}/digest", calls.digest),
            web.post("/v1/volumes/{volume}/verify", calls.verify),
        ]
    )


class _Calls:
    def __init__(self, replicator: Replicator, now_us: Callable[[], int]) -> None:
        self._replicator = replicator
        self._now_us = now_us

    async def health(self, _request: web.Request) -> web.Response:
        """503 when a volume here has failed: its replica would not be ready."""
        failed = [name for name, found in self._replicator.replicas.items() if found.state == "failed"]
        return http.json_response(
            {"ok": not failed, "site": self._replicator.site, "pid": os.getpid(), "failed": failed},
            503 if failed else 200,
        )

    async def status(self, _request: web.Request) -> web.Response:
        found = [replica.status() for _, replica in sorted(self._replicator.replicas.items())]
        return http.json_response(
            {
                "site": self._replicator.site,
                "pid": os.getpid(),
                "version": __version__,
                "volumes": found,
                "at_us": self._now_us(),
            }
        )

    async def volume(self, request: web.Request) -> web.Response:
        return http.json_response(self._replicator.get(_volume(request)).status())

    async def put_role(self, request: web.Request) -> web.Response:
        role = await http.read_body(request, Role)
        replica = await self._replicator.put_role(_volume(request), role)
        return http.json_response(replica.status())

    async def promise(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _Epoch)
        tip = await self._replicator.get_or_open(_volume(request)).promise(body.epoch)
        return http.json_response({"position": str(tip.position), "hash": tip.hash.hex()})

    async def catch_up(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _CatchUp)
        position = positions.parse(body.position) if body.position is not None else None
        replica = self._replicator.get(_volume(request))
        return http.json_response(await replica.catch_up(position, body.timeout_s))

    async def promote(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _Epoch)
        return http.json_response(await self._replicator.get(_volume(request)).promote(body.epoch))

    async def prepare_promote(self, request: web.Request) -> web.Response:
        await http.read_body(request, _Body)
        return http.json_response(await self._replicator.get(_volume(request)).prepare_promote())

    async def prepare_follow(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _PrepareFollow)
        reached = await self._replicator.get(_volume(request)).prepare_follow(body.timeout_s)
        return http.json_response({"position": str(reached)})

    async def rebuild(self, request: web.Request) -> web.Response:
        await http.read_body(request, _Body)
        replica = self._replicator.get(_volume(request))
        await replica.rebuild()
        return http.json_response(replica.status())

    async def log(self, request: web.Request) -> web.Response:
        after = request.query.get("after")
        rows = await reports.log_rows(
            self._replicator.get(_volume(request)),
            positions.parse(after) if after else None,
            _number(request, "limit", _LOG_ROWS),
        )
        return http.json_response({"frames": rows})

    async def digest(self, request: web.Request) -> web.Response:
        return http.json_response(await reports.digest(self._replicator.get(_volume(request))))

    async def verify(self, request: web.Request) -> web.Response:
        await http.read_body(request, _Body)
        answer: dict[str, Any] = await reports.prove(self._replicator.get(_volume(request)))
        return http.json_response(answer)


def _volume(request: web.Request) -> str:
    return request.match_info["volume"]


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isdigit():
        raise errors.Refused(f"{name}={text!r} is not a number", reason="bad-request")
    return int(text)
