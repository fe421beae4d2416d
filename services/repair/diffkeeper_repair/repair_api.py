"""The API of the repair service; the table of calls is in ARCHITECTURE.md."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from aiohttp import web

from diffkeeper import __version__, http
from diffkeeper.domain import errors, volumes
from diffkeeper_repair import health
from diffkeeper_repair.service import RepairService

MAX_SEAL_WAIT_S = 120.0


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Seal(_Body):
    timeout_s: float = 30.0


class _Drain(_Body):
    draining: bool = True


def add_routes(app: web.Application, service: RepairService) -> None:
    calls = _Calls(service)
    app.add_routes(
        [
            web.get("/healthz", calls.healthz),
            web.get("/v1/status", calls.status),
            web.get("/v1/health", calls.health),
            web.get("/v1/damages", calls.damages),
            web.post("/v1/seal", calls.seal),
            web.post("/v1/scrub", calls.scrub),
            web.post("/v1/rebuild", calls.rebuild),
            web.post("/v1/nodes/{node}/drain", calls.drain),
            web.get("/v1/volumes/{volume}/frames/{origin}/{sequence}", calls.frame),
        ]
    )


class _Calls:
    def __init__(self, service: RepairService) -> None:
        self._service = service

    async def healthz(self, _request: web.Request) -> web.Response:
        """503 until it is known what the nodes hold."""
        ready = self._service.surveyed.is_set()
        return http.json_response(
            {"ok": ready, "version": __version__, "pid": os.getpid()}, 200 if ready else 503
        )

    async def status(self, _request: web.Request) -> web.Response:
        service = self._service
        return http.json_response(
            {
                "pid": os.getpid(),
                "geometry": str(service.geometry),
                "words": health.words(service),
                "nodes": health.nodes(service),
                "scrub": service.scrubber.progress(),
                "last_tour": {
                    "took_us": service.memory.tour.last_took_us,
                    "ended_us": service.memory.tour.last_ended_us,
                },
                "rebuild": service.rebuilder.progress,
                "damages": {"open": len(service.book.open), "repaired": service.book.repaired_total},
                "at_us": service.now_us(),
            }
        )

    async def health(self, _request: web.Request) -> web.Response:
        return http.json_response(self._service.health())

    async def damages(self, _request: web.Request) -> web.Response:
        return http.json_response({"open": self._service.book.open, "past": self._service.book.past})

    async def seal(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _Seal)
        await self._service.sealers.flush(min(max(body.timeout_s, 0.0), MAX_SEAL_WAIT_S))
        return http.json_response(self._service.health())

    async def scrub(self, request: web.Request) -> web.Response:
        await http.read_body(request, _Body)
        found = await self._service.scrub()
        return http.json_response({**found, "damages": self._service.book.open})

    async def rebuild(self, request: web.Request) -> web.Response:
        await http.read_body(request, _Body)
        done = await self._service.rebuild()
        answer: dict[str, Any] = {**done, "health": self._service.health()}
        return http.json_response(answer)

    async def drain(self, request: web.Request) -> web.Response:
        body = await http.read_body(request, _Drain)
        node = request.match_info["node"]
        await self._service.drain(node, draining=body.draining)
        return http.json_response(next(row for row in health.nodes(self._service) if row["node"] == node))

    async def frame(self, request: web.Request) -> web.Response:
        """The bytes of one frame; ``?site=S`` says who asks, whose own stream is then not asked again."""
        volume = volumes.check_name("volume", request.match_info["volume"])
        site = volumes.check_name("site", request.match_info["origin"])
        sequence = request.match_info["sequence"]
        if not sequence.isdecimal() or len(sequence) > 18 or int(sequence) < 1:
            raise errors.Refused(f"{sequence!r} is no place in a stream", reason="bad-request")
        origin = volumes.Origin(volume, site)
        frame = await self._service.finder.find(origin, int(sequence), request.query.get("site", ""))
        return web.Response(body=frame.wire, content_type="application/octet-stream")
