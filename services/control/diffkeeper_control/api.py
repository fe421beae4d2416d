"""The admin API over HTTP. Requests are read here and answered from the parts; nothing is decided here.

The shapes are in ARCHITECTURE.md.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from aiohttp import web

from diffkeeper import __version__, http
from diffkeeper.domain import errors, stop_signals
from diffkeeper_control import admissions, failover_requests, operations
from diffkeeper_control.lifecycle import Wish
from diffkeeper_control.registry import Command
from diffkeeper_control.service import ControlService

MAX_WAIT_S = 60.0
MAX_LOG_ROWS = 10_000


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body: a key nobody reads is an error."""


class AttachBody(Body, kw_only=True):
    site: str
    path: str | None = None
    durability: str = "remote"
    policy: str = "block"
    mode: str = "exclusive"
    probe: str = "auto"


class RunBody(AttachBody, kw_only=True):
    argv: list[str]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    stop_signal: str = stop_signals.DEFAULT
    io_uring: bool = False
    hard_limit: bool = False


class ReleaseBody(Body, kw_only=True):
    exit_code: int | None = None


class SyncBody(Body, kw_only=True):
    level: str = "remote"
    timeout_s: float = 30.0


class FailoverBody(Body, kw_only=True):
    to: str
    force: bool = False
    accept_loss: bool = False
    start: bool = True
    durability: str | None = None
    grace_s: float = 10.0
    timeout_s: float = 60.0


class StopBody(Body, kw_only=True):
    kill: bool = False


class ShutdownBody(Body, kw_only=True):
    timeout_s: float = 60.0


class EmptyBody(Body, kw_only=True):
    pass


class Api:
    def __init__(self, service: ControlService) -> None:
        self._service = service

    def app(self, token: str) -> web.Application:
        app = http.make_app(token)
        app.add_routes(
            [
                web.get("/healthz", self.healthz),
                web.get("/v1/status", self.status),
                web.get("/v1/volumes/{volume}", self.volume),
                web.post("/v1/volumes/{volume}/run", self.run),
                web.post("/v1/volumes/{volume}/attach", self.attach),
                web.post("/v1/volumes/{volume}/release", self.release),
                web.post("/v1/volumes/{volume}/detach", self.detach),
                web.post("/v1/volumes/{volume}/sync", self.sync),
                web.post("/v1/volumes/{volume}/verify", self.verify),
                web.post("/v1/volumes/{volume}/failover", self.failover),
                web.get("/v1/volumes/{volume}/log", self.log),
                web.get("/v1/operations", self.operations),
                web.get("/v1/operations/{operation}", self.operation),
                web.post("/v1/sites/{site}/stop", self.stop_site),
                web.post("/v1/sites/{site}/start", self.start_site),
                web.post("/v1/shutdown", self.shutdown),
            ]
        )
        return app

    async def healthz(self, _: web.Request) -> web.Response:
        return http.json_response({"ok": True, "version": __version__, "pid": self._service.pid})

    async def status(self, _: web.Request) -> web.Response:
        return http.json_response(self._service.status())

    async def volume(self, request: web.Request) -> web.Response:
        return http.json_response(await self._service.volume_now(_volume(request)))

    async def run(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, RunBody)
        if not body.argv:
            raise errors.Refused("argv is empty", reason="bad-request", hint="name a program after --")
        command = Command(
            argv=body.argv,
            env=body.env,
            cwd=body.cwd,
            uid=body.uid,
            gid=body.gid,
            stop_signal=stop_signals.parse(body.stop_signal),
            io_uring=body.io_uring,
            hard_limit=body.hard_limit,
        )
        return http.json_response(await self._begin(request, body, command))

    async def attach(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, AttachBody)
        return http.json_response(await self._begin(request, body, None))

    async def _begin(self, request: web.Request, body: AttachBody, command: Command | None) -> dict[str, Any]:
        name = _volume(request)
        wish = Wish(name, body.site, body.path, body.durability, body.policy, body.mode, body.probe, command)
        ready = await self._service.lifecycle.begin(wish)
        return {"volume": await self._service.volume_now(name), **ready}

    async def release(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, ReleaseBody)
        return http.json_response(await self._service.lifecycle.release(_volume(request), body.exit_code))

    async def detach(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await self._service.lifecycle.detach(_volume(request)))

    async def sync(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, SyncBody)
        return http.json_response(
            await self._service.lifecycle.sync(_volume(request), body.level, body.timeout_s)
        )

    async def verify(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await self._service.verifier.verify(_volume(request)))

    async def failover(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, FailoverBody)
        asked = failover_requests.Asked(**msgspec.structs.asdict(body))
        operation = await self._service.begin_failover(_volume(request), asked)
        operation = await self._service.coordinator.wait(operation.id, _wait_s(request))
        return http.json_response(operations.view(operation), 202 if operation.running else 200)

    async def operation(self, request: web.Request) -> web.Response:
        name = request.match_info["operation"]
        operation = await self._service.coordinator.wait(name, _wait_s(request))
        return http.json_response(operations.view(operation))

    async def operations(self, request: web.Request) -> web.Response:
        known = self._service.operations.all(request.query.get("volume"))
        return http.json_response({"operations": [operations.view(operation) for operation in known]})

    async def log(self, request: web.Request) -> web.Response:
        after, limit = request.query.get("after"), _number(request, "limit", 100)
        rows = await self._service.log_reader.read(
            _volume(request), after, int(min(max(limit, 1), MAX_LOG_ROWS))
        )
        return http.json_response(rows)

    async def stop_site(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, StopBody)
        site = self._site(request)
        await self._service.stop_site(site, kill=body.kill)
        return http.json_response(self._service.views.site(site))

    async def start_site(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        site = self._site(request)
        await self._service.start_site(site)
        return http.json_response(self._service.views.site(site))

    async def shutdown(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, ShutdownBody)
        self._service.ask_shutdown(body.timeout_s)
        return http.json_response({"stopping": True, "at_us": time.time_ns() // 1000})

    def _site(self, request: web.Request) -> str:
        site = request.match_info["site"]
        admissions.check_site(site, self._service.embedded.sites)
        return site


def _volume(request: web.Request) -> str:
    return request.match_info["volume"]


def _wait_s(request: web.Request) -> float:
    return min(max(_number(request, "wait_s", 0.0), 0.0), MAX_WAIT_S)


def _number(request: web.Request, key: str, default: float) -> float:
    try:
        return float(request.query.get(key, default))
    except ValueError as error:
        raise errors.Refused(f"{key} is not a number", reason="bad-request") from error
