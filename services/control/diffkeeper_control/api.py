"""The admin API over HTTP. Requests are read here and answered from the parts; nothing is decided here.

The shapes are in ARCHITECTURE.md.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import msgspec
from aiohttp import web

from diffkeeper import __version__, http
from diffkeeper.domain import errors, stop_signals, volumes
from diffkeeper_control import (
    admissions,
    door_orders,
    drill_reports,
    failover_requests,
    operations,
    processes,
)
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


class DoorBody(Body, kw_only=True):
    listen: str
    forward: int | None = None
    hold_max: int = door_orders.HOLD_MAX
    hold_ms: int = door_orders.HOLD_MS
    drain_ms: int = door_orders.DRAIN_MS


class RunBody(AttachBody, kw_only=True):
    argv: list[str]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    stop_signal: str = stop_signals.DEFAULT
    io_uring: bool = False
    hard_limit: bool = False
    front_door: DoorBody | None = None


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


class MergeBody(Body, kw_only=True):
    # None: all of the branch.
    paths: list[str] = []
    # A new or empty directory; null: the main line.
    to: str | None = None


class DrillBody(Body, kw_only=True):
    to: str
    check: str | None = None
    rto_ms: float | None = None
    rpo_ms: float | None = None
    timeout_s: float = 60.0
    # Hold it from now on again and again, and not at once; 0 ends that.
    every_s: float | None = None


class CloneBody(Body, kw_only=True):
    site: str
    # Whose it is: it is taken away once this process of this machine has ended.
    owner: int


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
                web.post("/v1/volumes/{volume}/stop-program", self.stop_program),
                web.post("/v1/volumes/{volume}/start-program", self.start_program),
                web.post("/v1/volumes/{volume}/failover", self.failover),
                web.get("/v1/volumes/{volume}/log", self.log),
                web.get("/v1/volumes/{volume}/branches", self.branches),
                web.get("/v1/volumes/{volume}/branches/{branch}", self.branch),
                web.post("/v1/volumes/{volume}/branches/{branch}/merge", self.merge_branch),
                web.post("/v1/volumes/{volume}/branches/{branch}/drop", self.drop_branch),
                web.route("*", "/v1/volumes/{volume}/history", self._service.history_reader.pass_on),
                web.route(
                    "*", "/v1/volumes/{volume}/history/{tail:.*}", self._service.history_reader.pass_on
                ),
                web.post("/v1/volumes/{volume}/drill", self.drill),
                web.get("/v1/volumes/{volume}/drills", self.drills),
                web.post("/v1/volumes/{volume}/clones", self.make_clone),
                web.delete("/v1/sites/{site}/clones/{clone}", self.remove_clone),
                web.get("/v1/operations", self.operations),
                web.get("/v1/operations/{operation}", self.operation),
                web.post("/v1/sites/{site}/stop", self.stop_site),
                web.post("/v1/sites/{site}/start", self.start_site),
                web.post("/v1/nodes/{node}/stop", self.stop_node),
                web.post("/v1/nodes/{node}/start", self.start_node),
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
        door = (
            None if body.front_door is None else door_orders.Asked(**msgspec.structs.asdict(body.front_door))
        )
        return http.json_response(await self._begin(request, body, command, door))

    async def attach(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, AttachBody)
        return http.json_response(await self._begin(request, body, None))

    async def _begin(
        self,
        request: web.Request,
        body: AttachBody,
        command: Command | None,
        door: door_orders.Asked | None = None,
    ) -> dict[str, Any]:
        name = _volume(request)
        wish = Wish(
            name, body.site, body.path, body.durability, body.policy, body.mode, body.probe, command, door
        )
        if body.mode == volumes.Mode.SHARED.value:
            name, ready = await self._service.shared.begin(wish)
        else:
            self._service.shared.check_not_shared(name)
            ready = await self._service.lifecycle.begin(wish)
        return {"volume": await self._service.volume_now(name), **ready}

    async def release(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, ReleaseBody)
        return http.json_response(await self._service.lifecycle.release(_volume(request), body.exit_code))

    async def detach(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await self._service.lifecycle.detach(_volume(request)))

    async def stop_program(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await self._service.program_stops.stop(_volume(request)))

    async def start_program(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await self._service.program_stops.start(_volume(request)))

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

    async def branches(self, request: web.Request) -> web.Response:
        name = _volume(request)
        found = await self._service.branch_merges.every(name)
        return http.json_response({"volume": name, "branches": found})

    async def branch(self, request: web.Request) -> web.Response:
        query = {key: value for key, value in request.query.items() if key in ("path", "content")}
        found = await self._service.branch_merges.compared(_volume(request), _branch(request), query)
        return http.json_response(found)

    async def merge_branch(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, MergeBody)
        return http.json_response(
            await self._service.branch_merges.merge(_volume(request), _branch(request), body.paths, body.to)
        )

    async def drop_branch(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        return http.json_response(await self._service.branch_merges.drop(_volume(request), _branch(request)))

    async def drill(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, DrillBody)
        name, drills = _volume(request), self._service.drills
        asked = drill_reports.Asked(
            to=body.to, check=body.check, rto_ms=body.rto_ms, rpo_ms=body.rpo_ms, timeout_s=body.timeout_s
        )
        if body.every_s is None:
            return http.json_response(await drills.hold(name, asked))
        drill_reports.check(asked)
        admissions.check_site(body.to, self._service.embedded.sites)
        schedule = None
        if body.every_s:
            drill_reports.check_every(body.every_s)
            schedule = drill_reports.Schedule(volume=name, asked=asked, every_s=body.every_s)
        drills.set_schedule(name, schedule)
        return http.json_response({"volume": name, "every_s": body.every_s or None})

    async def drills(self, request: web.Request) -> web.Response:
        name = _volume(request)
        self._service.registry.get(name)
        return http.json_response({"volume": name, "drills": self._service.drills.reports(name)})

    async def make_clone(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, CloneBody)
        owner = processes.identify(body.owner)
        if owner is None:
            raise errors.Refused(f"there is no process {body.owner} on this machine", reason="bad-request")
        clone = await self._service.clones.make(_volume(request), body.site, owner)
        return http.json_response({**dataclasses.asdict(clone), "path": str(clone.path)})

    async def remove_clone(self, request: web.Request) -> web.Response:
        await self._service.clones.remove(self._site(request), request.match_info["clone"])
        return http.json_response({})

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

    async def stop_node(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, StopBody)
        site = await self._service.stop_node(request.match_info["node"], kill=body.kill)
        return http.json_response(self._service.views.site(site))

    async def start_node(self, request: web.Request) -> web.Response:
        await http.read_body(request, EmptyBody)
        site = await self._service.start_node(request.match_info["node"])
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


def _branch(request: web.Request) -> str:
    return request.match_info["branch"]


def _wait_s(request: web.Request) -> float:
    return min(max(_number(request, "wait_s", 0.0), 0.0), MAX_WAIT_S)


def _number(request: web.Request, key: str, default: float) -> float:
    try:
        return float(request.query.get(key, default))
    except ValueError as error:
        raise errors.Refused(f"{key} is not a number", reason="bad-request") from error
