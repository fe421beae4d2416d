"""Shared volumes: at each site a directory, captured as a volume of its own (a *member*), and the replicators told
to merge them.

Nothing is kept here: the members in the registry say which shared volumes there are, and where. What a site was
told is compared with what it should be told at every look, as everywhere in control.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import structlog
from aiohttp import web

from diffkeeper import http
from diffkeeper.domain import errors, volumes
from diffkeeper_control import admissions, registry
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.lifecycle import Lifecycle, Wish
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.registry import State, Volume

LOOK_EVERY_S = 1.0
# Even where nothing has changed a site is told again after so many looks: its replicator may have begun anew.
TELL_EVERY_LOOKS = 15
# How long calls that may wait for a file to be read take.
CALL_S = 60.0

_log = structlog.get_logger("shared")


class SharedVolumes:
    def __init__(
        self, embedded: Embedded, known: registry.Registry, monitor: Monitor, lifecycle: Lifecycle
    ) -> None:
        self._embedded = embedded
        self._registry = known
        self._monitor = monitor
        self._lifecycle = lifecycle
        # (volume, site) → the replicator's process and what it was told.
        self._told: dict[tuple[str, str], tuple[object, dict[str, Any]]] = {}

    def all(self) -> dict[str, dict[str, Volume]]:
        """Shared volumes with their members by site."""
        found: dict[str, dict[str, Volume]] = {}
        for member in self._registry.all():
            if member.mode == volumes.Mode.SHARED.value:
                found.setdefault(volumes.shared_of(member.name), {})[member.leader] = member
        return found

    def get(self, volume: str) -> dict[str, Volume]:
        members = self.all().get(volume)
        if members is None:
            known = ", ".join(self.all()) or "none yet"
            raise errors.NotFound(
                f"there is no shared volume {volume!r}",
                reason="unknown-volume",
                hint=f"the shared volumes of this deployment: {known}",
                volume=volume,
            )
        return members

    def check_not_shared(self, volume: str) -> None:
        if volume in self.all():
            raise errors.Refused(
                f"volume {volume} is shared, not exclusive",
                reason="mode-differs",
                hint="a volume keeps its mode: --mode shared",
            )

    async def begin(self, wish: Wish) -> tuple[str, dict[str, Any]]:
        """Have a site capture its directory of a shared volume and merge it with the others'; the member's name too."""
        admissions.check_request(
            admissions.Asked(wish.volume, wish.site, wish.path, volumes.Mode.EXCLUSIVE.value),
            self._embedded.sites,
        )
        if self._registry.find(wish.volume) is not None:
            raise errors.Refused(
                f"volume {wish.volume} is exclusive, not shared",
                reason="mode-differs",
                hint="a volume keeps its mode",
            )
        member = volumes.member(wish.volume, wish.site)
        ready = await self._lifecycle.begin(replace(wish, volume=member))
        await self.tell(wish.volume, patient=False)
        return member, {**ready, "shared": wish.volume}

    async def run(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            looks += 1
            if looks % TELL_EVERY_LOOKS == 0:
                self._told.clear()
            for volume in self.all():
                await self.tell(volume, patient=True)

    async def tell(self, volume: str, *, patient: bool) -> None:
        """Tell each running site its part, where that is news; with ``patient`` only sites that answered lately."""
        members = self.get(volume)
        for site, member in members.items():
            heard = self._monitor.replicator(site)
            if self._embedded.is_stopped(site) or (patient and not heard.fresh):
                continue
            role = {
                "path": member.paths[site],
                "member": member.name,
                "sites": sorted(members),
                "captured": member.state is State.CAPTURED,
            }
            told = ((heard.answer or {}).get("pid"), role)
            if self._told.get((volume, site)) == told:
                continue
            try:
                await self._embedded.clients[site].replicator.call("PUT", _path(volume), role, CALL_S)
                self._told[volume, site] = told
            except errors.DiffKeeperError as error:
                _log.warning("a site will be told of a shared volume later", site=site, error=error.message)

    async def status(self, volume: str) -> dict[str, Any]:
        """What each site says of its part; a site that does not answer says why."""
        members = self.get(volume)
        shown: list[dict[str, Any]] = []
        for site, member in sorted(members.items()):
            try:
                answer = await self._embedded.clients[site].replicator.call("GET", _path(volume))
            except errors.DiffKeeperError as error:
                answer = {"state": "unreachable", "troubles": [{"log": "", **error.to_dict()}]}
            shown.append({"path": member.paths[site], "member": member.name, **answer, "site": site})
        return {"volume": volume, "mode": volumes.Mode.SHARED.value, "sites": shown}

    async def pass_on(self, request: web.Request) -> web.Response:
        """A question about a shared volume, answered by the site ``site=``, or the first that can."""
        volume = request.match_info["volume"]
        members = self.get(volume)
        wanted = request.query.get("site")
        if wanted is not None and wanted not in members:
            raise errors.NotFound(f"{volume} is not shared with site {wanted!r}", reason="unknown-site")
        trouble: errors.DiffKeeperError | None = None
        body = await http.read_body(request, dict[str, Any]) if request.can_read_body else None
        asked = [wanted] if wanted is not None else sorted(members)
        if request.match_info["tail"] == "undo" and wanted is None:
            # At one site only: what one that fell silent may have done is not done again at the next.
            asked = [site for site in asked if self._monitor.replicator(site).fresh][:1] or asked[:1]
        for site in asked:
            try:
                replicator = self._embedded.clients[site].replicator
                query = f"?{request.query_string}" if request.query_string else ""
                path = _path(volume) + "/" + quote(request.match_info["tail"]) + query
                return http.json_response(await replicator.call(request.method, path, body, CALL_S))
            except errors.Transient as error:
                trouble = trouble or error
        assert trouble is not None, "a shared volume has a site"
        raise trouble

    def add_routes(self, app: web.Application) -> None:
        app.add_routes(
            [
                web.get("/v1/shared", self._every),
                web.get("/v1/shared/{volume}", self._one),
                web.get("/v1/shared/{volume}/{tail:conflicts|blame}", self.pass_on),
                web.post("/v1/shared/{volume}/{tail:conflicts/[0-9a-f]+|undo}", self.pass_on),
            ]
        )

    async def _every(self, _: web.Request) -> web.Response:
        return http.json_response({"volumes": [await self.status(volume) for volume in self.all()]})

    async def _one(self, request: web.Request) -> web.Response:
        return http.json_response(await self.status(request.match_info["volume"]))


def _path(volume: str) -> str:
    return f"/v1/shared/{quote(volume, safe='')}"
