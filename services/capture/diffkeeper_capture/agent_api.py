"""The agent's HTTP, as ARCHITECTURE.md says: bodies to orders, answers to JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from aiohttp import web

from diffkeeper import http, metrics
from diffkeeper.domain import errors, leases, positions, receipts, stop_signals, volumes
from diffkeeper_capture.agent import Agent
from diffkeeper_capture.agent_metrics import AgentMetrics
from diffkeeper_capture.program import Command
from diffkeeper_capture.volume_order import Order, parse_tip


class Parent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    position: str
    hash: str


class AttachBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    path: str
    epoch: int
    parent: Parent
    durability: str
    policy: Literal["block", "degrade"] = "block"
    tree_state: str | None = None
    probe: Literal["auto", "bpf", "watch"] = "auto"
    replicas: list[str] = []
    lease_ttl_ms: int | None = None


class StartBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    argv: list[str]
    env: dict[str, str] = {}
    cwd: str | None = None
    uid: int | None = None
    gid: int | None = None
    bind: str | None = None
    stop_signal: str = stop_signals.DEFAULT
    io_uring: bool = False
    hard_limit: bool = False


class StageBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tree_state: str


class PrepareBody(StartBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    path: str
    durability: str
    # Until it is ready, and not only begun.
    wait: bool = True


class SyncBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    level: str
    timeout_s: float = 30.0


class HandoverBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    successor: str
    grace_s: float = 10.0
    timeout_s: float = 30.0


class SurrenderBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    epoch: int
    parent: str


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class AgentApi:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def add_to(self, app: web.Application) -> None:
        measured = metrics.Metrics()
        AgentMetrics(measured, self._agent)
        volume = "/v1/volumes/{volume}"
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/v1/status", self._status),
                web.post(f"{volume}/attach", self._attach),
                web.post(f"{volume}/prepare", self._prepare),
                web.post(f"{volume}/stage", self._stage),
                web.post(f"{volume}/start", self._start),
                web.post(f"{volume}/sync", self._sync),
                web.post(f"{volume}/prepare-handover", self._prepare_handover),
                web.post(f"{volume}/handover", self._handover),
                web.post(f"{volume}/release", self._release),
                web.post(f"{volume}/surrender", self._surrender),
                measured.route(),
            ]
        )

    async def _healthz(self, _request: web.Request) -> web.Response:
        sick = [capture.order.volume for capture in self._agent.captures() if capture.error is not None]
        return http.json_response({"ok": not sick, "failed": sick}, 503 if sick else 200)

    async def _status(self, _request: web.Request) -> web.Response:
        return http.json_response(self._agent.status())

    async def _attach(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, AttachBody)
        if body.epoch < 1:
            raise errors.Refused(f"{body.epoch} is not an epoch", reason="bad-request")
        if body.lease_ttl_ms is not None:
            leases.check_ttl(body.lease_ttl_ms)
        order = Order(
            request.match_info["volume"],
            Path(body.path),
            body.epoch,
            parse_tip(body.parent.position, body.parent.hash),
            receipts.parse_level(body.durability),
            volumes.UnmetPolicy(body.policy),
            None if body.tree_state is None else Path(body.tree_state),
            body.probe,
            tuple(volumes.check_name("site", site) for site in body.replicas),
            body.lease_ttl_ms,
        )
        return http.json_response(await self._agent.attach(order))

    async def _prepare(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, PrepareBody)
        if not body.argv:
            raise errors.Refused("there is no command to start", reason="bad-request")
        command = _command(body)
        level = receipts.parse_level(body.durability)
        prepared = await self._agent.prepare(
            request.match_info["volume"], Path(body.path), level, command, body.wait
        )
        return http.json_response({"prepared": prepared})

    async def _start(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, StartBody)
        if not body.argv:
            raise errors.Refused("there is no command to start", reason="bad-request")
        return http.json_response(await self._agent.start(request.match_info["volume"], _command(body)))

    async def _stage(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, StageBody)
        staged = await self._agent.stage(request.match_info["volume"], Path(body.tree_state))
        return http.json_response({"staged": staged})

    async def _sync(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, SyncBody)
        receipt = await self._agent.sync(
            request.match_info["volume"], receipts.parse_level(body.level), body.timeout_s
        )
        return http.json_response(receipt.to_dict())

    async def _handover(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, HandoverBody)
        volumes.check_name("site", body.successor)
        answer = await self._agent.hand_over(
            request.match_info["volume"], body.successor, body.grace_s, body.timeout_s
        )
        return http.json_response(answer)

    async def _prepare_handover(self, request: web.Request) -> web.Response:
        await http.read_body(request, NoBody)
        prepared = await self._agent.prepare_handover(request.match_info["volume"])
        return http.json_response({"prepared": prepared})

    async def _release(self, request: web.Request) -> web.Response:
        await http.read_body(request, NoBody)
        return http.json_response(await self._agent.release(request.match_info["volume"]))

    async def _surrender(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, SurrenderBody)
        parent = positions.parse(body.parent)
        return http.json_response(
            await self._agent.surrender(request.match_info["volume"], body.epoch, parent)
        )


def _command(body: StartBody) -> Command:
    return Command(
        body.argv,
        body.env,
        body.cwd,
        body.uid,
        body.gid,
        body.bind,
        stop_signals.parse(body.stop_signal),
        body.io_uring,
        body.hard_limit,
    )
