"""Control's hand on the front doors: one ``diffkeeper-door`` for all sites of this machine, and its orders.

Doors are a convenience of clients: what cannot be told to a door is logged and told again by ``correct``, and
never stops a volume from being moved. Only a new door that cannot listen is refused.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec
import structlog

from diffkeeper import nats_server
from diffkeeper.domain import errors
from diffkeeper_control import deployment, door_orders, processes, settings
from diffkeeper_control.deployment import HOST
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.registry import Registry, Volume
from diffkeeper_control.sites import Answer, Service
from diffkeeper_control.supervisor import Child, Recipe

MODULE = "diffkeeper_control.front_door.main"
START_TIMEOUT_S = 20.0
STOP_GRACE_S = 5.0
# While volumes move nobody may wait long for a door that does not answer.
ORDER_TIMEOUT_S = 1.0
# From the opening of a door to the record of the volume that wants it.
RECORDED_WITHIN_S = 60.0

_log = structlog.get_logger("door keeper")


class DoorKeeper:
    def __init__(self, embedded: Embedded, known: Registry) -> None:
        self._embedded = embedded
        self._registry = known
        note = embedded.note.door
        port = nats_server.free_port(HOST) if note is None else note.port
        self._port = port
        self._service = Service(embedded.session, settings.address(port), embedded.token)
        self._child = Child(self._recipe(), self._save)
        self._starting = asyncio.Lock()
        # As last heard, by volume.
        self._statuses: dict[str, dict[str, Any]] = {}
        self._heard_at: float | None = None
        self._opened_at: dict[str, float] = {}

    async def start(self) -> None:
        """Take over the doors that an earlier control left; others are opened when they are needed."""
        note = self._embedded.note.door
        if note is not None and note.process is not None:
            await self._child.adopt(note.process)
        if any(door_orders.is_wanted(volume) for volume in self._registry.all()):
            await self._ensure_started(patient=True)
            await self.correct()

    async def stop(self) -> None:
        await self._child.stop()

    async def open(self, volume: Volume) -> None:
        """Have the door lead to the volume's leader; raises Refused when it cannot listen."""
        if volume.door is None:
            return
        await self._ensure_started(patient=False)
        self._opened_at[volume.name] = time.monotonic()
        self._take(await self._put(volume.name, door_orders.opened(volume, self._host(volume)), 10.0))

    async def lead(self, volume: Volume) -> None:
        """``open`` within a move: what fails is made good later."""
        if door_orders.is_wanted(volume):
            await self._try(
                volume.name, self._put(volume.name, door_orders.opened(volume, self._host(volume)))
            )

    async def hold(self, volume: Volume, *, cut: bool = False) -> None:
        if door_orders.is_wanted(volume):
            await self._try(
                volume.name, self._put(volume.name, door_orders.held(volume, self._host(volume), cut=cut))
            )

    async def drain(self, volume: Volume) -> dict[str, Any]:
        """Hold, and wait until what is under way has ended; what the door says of it."""
        if not door_orders.is_wanted(volume):
            return {}
        await self.hold(volume)
        assert volume.door is not None, "a wanted door is one"
        body = {"timeout_ms": volume.door.drain_ms}
        timeout_s = volume.door.drain_ms / 1000 + ORDER_TIMEOUT_S
        answer = await self._try(
            volume.name, self._service.call("POST", f"/v1/doors/{volume.name}/drain", body, timeout_s)
        )
        if answer is not None and not answer.get("drained"):
            _log.warning("requests were still under way when the program was stopped", **answer)
        return answer or {}

    async def close(self, name: str) -> None:
        if self._child.is_running():
            await self._try(name, self._service.call("DELETE", f"/v1/doors/{name}", None, ORDER_TIMEOUT_S))
        self._statuses.pop(name, None)

    async def correct(self) -> None:
        """One comparison of every door with what it should do."""
        if not self._child.is_running():
            if any(door_orders.is_wanted(volume) for volume in self._registry.all()):
                await self._ensure_started(patient=True)
            else:
                return
        try:
            answer = await self._service.status()
        except errors.DiffKeeperError as error:
            _log.warning("the front doors do not answer", error=error.message)
            return
        self._heard_at = time.monotonic()
        self._statuses = {door["volume"]: door for door in answer["doors"]}
        for name in list(self._statuses):
            if self._is_left_over(name):
                await self.close(name)
        for volume in self._registry.all():
            known = self._statuses.get(volume.name)
            settled = volume.operation is None and door_orders.is_wanted(volume)
            if settled and not door_orders.is_met(volume, self._host(volume), known):
                await self.lead(volume)

    def _is_left_over(self, name: str) -> bool:
        """Its program has ended, or never began: a door is opened before its volume is recorded."""
        volume = self._registry.find(name)
        if volume is not None and (volume.operation is not None or door_orders.is_wanted(volume)):
            return False
        return time.monotonic() - self._opened_at.get(name, 0.0) > RECORDED_WITHIN_S

    def view(self, volume: Volume) -> dict[str, Any] | None:
        """The door as the admin API shows it."""
        door = volume.door
        if door is None:
            return None
        status = self._statuses.get(volume.name)
        age_ms = None if self._heard_at is None else int((time.monotonic() - self._heard_at) * 1000)
        shown = {key: value for key, value in (status or {}).items() if key not in ("order", "volume")}
        return {
            "listen": f"{door.protocol}:{_bracketed(door.host)}:{door.port}",
            "forward": door.ports,
            "hold_max": door.hold_max,
            "hold_ms": door.hold_ms,
            "drain_ms": door.drain_ms,
            "now": {**shown, "age_ms": age_ms} if status is not None else None,
        }

    async def _put(self, name: str, order: Answer, timeout_s: float = ORDER_TIMEOUT_S) -> Answer:
        return await self._service.call("PUT", f"/v1/doors/{name}", order, timeout_s)

    async def _try(self, name: str, telling: Any) -> Answer | None:
        try:
            answer: Answer = await telling
        except errors.DiffKeeperError as error:
            _log.warning("a front door could not be told", volume=name, error=error.message)
            return None
        self._take(answer)
        return answer

    def _take(self, answer: Answer) -> None:
        if "order" in answer:
            self._statuses[answer["volume"]] = answer
            self._heard_at = time.monotonic()

    async def _ensure_started(self, *, patient: bool) -> None:
        async with self._starting:
            if self._child.is_idle:
                for stray in processes.with_argument(self._mark()):
                    await processes.stop(stray, STOP_GRACE_S)
                await self._child.start(patient=patient)

    def _host(self, volume: Volume) -> str:
        """Where the programs of the volume's leader are found."""
        return self._embedded.note.sites[volume.leader].address

    def _mark(self) -> str:
        return f"--token-file={self._embedded.layout.token}"

    def _recipe(self) -> Recipe:
        log = self._embedded.layout.logs / "door.log"

        async def launch() -> processes.ProcessId:
            argv = [sys.executable, "-m", MODULE, f"--port={self._port}", self._mark()]
            return processes.spawn(argv, log)

        async def works() -> bool:
            try:
                await self._service.status()
            except errors.Transient:
                return False
            return True

        return Recipe(
            "door", "all", self._service.address, str(log), launch, works, START_TIMEOUT_S, STOP_GRACE_S
        )

    def _save(self) -> None:
        self._embedded.note.door = deployment.DoorNote(port=self._port, process=self._child.process)
        deployment.save(self._embedded.layout, self._embedded.note)


def with_ports(volume: Volume, sites: list[str], forward: int | None) -> Volume:
    """The volume with a port of its program for each site: the one asked for, or free ones."""
    assert volume.door is not None, "asked for volumes with a door only"
    ports = {site: forward or nats_server.free_port(HOST) for site in sites}
    return msgspec.structs.replace(volume, door=msgspec.structs.replace(volume.door, ports=ports))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
