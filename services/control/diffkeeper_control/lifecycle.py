"""Run, attach, release, sync: the life of a volume at the site that leads it.

Each call validates first (``admissions``), then records what it is about to do, then asks the site. One
change of a volume at a time: the lock of its name is also held while a failover is accepted.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from diffkeeper.domain import errors, positions, receipts
from diffkeeper_control import admissions, door_keeper, door_orders, programs, registry, resting, streams
from diffkeeper_control.door_keeper import DoorKeeper
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.hands import SiteHands
from diffkeeper_control.lease_office import FIRST_GRANT_TIMEOUT_S
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.registry import Command, Reign, Resume, State, Volume

_CAPTURING = frozenset({"scanning", "capturing"})

_log = structlog.get_logger("lifecycle")


@dataclass(frozen=True, slots=True)
class Wish:
    """A request to run or attach."""

    volume: str
    site: str
    path: str | None
    durability: str
    policy: str
    mode: str
    probe: str
    command: Command | None
    door: door_orders.Asked | None = None


class Lifecycle:
    def __init__(
        self,
        embedded: Embedded,
        known: registry.Registry,
        monitor: Monitor,
        hands: SiteHands,
        doors: DoorKeeper,
    ) -> None:
        self._embedded = embedded
        self._doors = doors
        self._registry = known
        self._monitor = monitor
        self._hands = hands
        self._locks: dict[str, asyncio.Lock] = {}

    def lock(self, volume: str) -> asyncio.Lock:
        return self._locks.setdefault(volume, asyncio.Lock())

    async def begin(self, wish: Wish) -> dict[str, Any]:
        """Have a site capture the volume; what the caller needs to start the program, but for the volume
        itself.
        """
        asked = admissions.Asked(wish.volume, wish.site, wish.path, wish.mode)
        admissions.check_request(asked, self._embedded.sites)
        receipts.parse_level(wish.durability)
        async with self.lock(wish.volume):
            known = self._registry.find(wish.volume)
            if known is not None:
                await self._monitor.look(known.leader)
                admissions.check_volume(asked, known, self._holder(known))
            self._check_site_runs(wish.site)
            volume = self._with_door(self._admit(asked, wish, known), wish.door)
            await self._doors.open(volume)  # before anything is captured: it may have to be refused
            volume = await (self._begin_new(volume) if known is None else self._begin_again(volume))
        return self._ready(volume, created=known is None, command=wish.command)

    def _with_door(self, volume: Volume, asked: door_orders.Asked | None) -> Volume:
        if asked is None:
            return msgspec.structs.replace(volume, door=None)
        door = door_orders.check(asked, volume.name, self._registry.all())
        volume = msgspec.structs.replace(volume, door=door)
        return door_keeper.with_ports(volume, self._embedded.sites, asked.forward)

    def _check_site_runs(self, site: str) -> None:
        if self._embedded.is_stopped(site):
            raise errors.Refused(
                f"site {site} is stopped",
                reason="site-stopped",
                hint=f"start it first (POST /v1/sites/{site}/start)",
                site=site,
            )

    def _holder(self, volume: Volume) -> admissions.Holder | None:
        status = self._monitor.agent(volume.leader).volume(volume.name)
        program = (status or {}).get("program")
        if not program or not program.get("running") or self._embedded.is_stopped(volume.leader):
            return None
        return admissions.Holder(volume.leader, int(program["pid"]), volume.held_since_us)

    def _admit(self, asked: admissions.Asked, wish: Wish, known: Volume | None) -> Volume:
        real = os.path.realpath(asked.path) if asked.path is not None else None
        kept = admissions.choose_path(known, asked, real)
        path = kept if kept is not None else real
        assert path is not None, "a new volume has the path that was asked for"
        admissions.check_path(_look_at(path), path)
        now_us = time.time_ns() // 1000
        if known is None:
            admissions.check_apart(asked.volume, path, self._registry.all(), str(self._embedded.layout.dir))
            known = registry.created(
                asked.volume,
                asked.site,
                path,
                mode=wish.mode,
                durability=wish.durability,
                policy=wish.policy,
                probe=wish.probe,
                now_us=now_us,
            )
            replicas = {
                site: str(self._embedded.layout.replica(site, asked.volume))
                for site in self._embedded.sites
                if site != asked.site
            }
            known = msgspec.structs.replace(known, paths={**known.paths, **replicas})
        return msgspec.structs.replace(
            known,
            durability=wish.durability,
            policy=wish.policy,
            probe=wish.probe,
            command=wish.command or known.command,
            held_since_us=now_us if wish.command is not None else None,
            state=State.CAPTURED,
            detail="",
        )

    async def _begin_new(self, volume: Volume) -> Volume:
        self._registry.put(volume)
        try:
            await self._ensure_streams(volume)
            await self._attach(volume)
        except errors.DiffKeeperError as error:
            if not isinstance(error, errors.Transient):
                self._registry.remove(volume.name)  # a plain no: nothing was captured
            raise
        await self._tell_roles(volume)
        return volume

    async def _begin_again(self, volume: Volume) -> Volume:
        before = self._registry.get(volume.name)
        status = await self._embedded.clients[volume.leader].agent.volume(volume.name)
        captures = status is not None and status.get("state") in _CAPTURING
        renew = volume.highest_epoch > volume.epoch
        if captures and not renew and _same_settings(status or {}, volume):
            return self._registry.put(volume)
        try:
            await self._ensure_streams(volume)
            if captures:
                volume = msgspec.structs.replace(volume, resume=(await self._end_capture(before)).resume)
            if not renew:
                volume = _after_its_end(volume)
            volume = self._registry.put(volume)
            await self._attach(volume)
            if renew:
                volume = await self._renew(volume)
        except errors.DiffKeeperError:
            now = self._registry.get(volume.name)
            self._registry.put(
                msgspec.structs.replace(now, held_since_us=None, state=before.state, detail=before.detail)
            )
            raise
        await self._tell_roles(volume)
        return volume

    async def _renew(self, volume: Volume) -> Volume:
        """A newer epoch was promised to a failover that failed, so nothing of this one is confirmed any more:
        begin another.
        """
        held_since_us = volume.held_since_us
        ended = await self._end_capture(volume)
        assert ended.resume is not None, "capture ended at a point"
        resume = ended.resume
        ended, epoch = registry.with_next_epoch(ended)
        volume = registry.with_reign(
            ended,
            Reign(site=volume.leader, epoch=epoch, parent=resume.point),
            path=volume.paths[volume.leader],
            resume=resume,
        )
        volume = msgspec.structs.replace(volume, state=State.CAPTURED, held_since_us=held_since_us)
        self._registry.put(volume)
        await self._attach(volume)
        return volume

    async def resume(self, name: str) -> None:
        """The leader's agent has started anew and knows nothing: give it its order again."""
        async with self.lock(name):
            volume = self._registry.get(name)
            if volume.state is State.CAPTURED and volume.operation is None:
                await self._ensure_streams(volume)
                await self._attach(volume)

    async def _attach(self, volume: Volume) -> None:
        await self._hands.begin_capture(volume, timeout_s=FIRST_GRANT_TIMEOUT_S)
        await self._monitor.look(volume.leader)

    async def _tell_roles(self, volume: Volume) -> None:
        for site in self._embedded.sites:
            if self._embedded.is_stopped(site):
                continue
            try:
                await self._hands.tell_role(volume.name, site)
            except errors.Transient as error:
                _log.warning("a site will be told its role later", site=site, error=error.message)

    async def _ensure_streams(self, volume: Volume) -> None:
        running = [site for site in self._embedded.sites if not self._embedded.is_stopped(site)]
        await streams.ensure(volume.name, self._embedded.clients, running, volume.leader)

    def _ready(self, volume: Volume, *, created: bool, command: Command | None) -> dict[str, Any]:
        gate = str(self._embedded.layout.gate(volume.leader))
        ready: dict[str, Any] = {
            "created": created,
            "path": volume.paths[volume.leader],
            "gate": gate,
            "wrapper": [],
            "argv": [],
            "env": {},
        }
        if command is not None:
            start = programs.at(volume, volume.leader, gate, command)
            wrapper = programs.wrapper(volume, volume.leader, gate, command)
            ready |= {"wrapper": wrapper, "argv": start.argv, "env": start.env}
        return ready

    async def release(self, name: str, exit_code: int | None) -> dict[str, Any]:
        """The program has ended: capture ends with everything it wrote in the log."""
        async with self.lock(name):
            volume = self._registry.get(name)
            self._check_not_moving(volume)
            if volume.state is State.RELEASED and volume.resume is not None:
                return _released(volume)
            self._check_site_runs(volume.leader)
            volume = await self._end_capture(volume)
            await self._doors.close(name)
            _log.info("released", volume=name, exit_code=exit_code)
            return _released(volume)

    async def detach(self, name: str) -> dict[str, Any]:
        volume = self._registry.get(name)
        await self._monitor.look(volume.leader)
        holder = self._holder(volume)
        if holder is not None:
            raise errors.Refused(
                f"volume {name} is held by a running program: process {holder.pid} at {holder.site}",
                reason="program-running",
                hint="stop the program; its capture then ends by itself",
                site=holder.site,
                pid=holder.pid,
            )
        return await self.release(name, None)

    async def _end_capture(self, volume: Volume) -> Volume:
        answer = await self._embedded.clients[volume.leader].agent.release(volume.name)
        point = registry.Point(position=answer["position"], hash=answer["hash"])
        await self._monitor.look(volume.leader)
        return self._registry.put(
            msgspec.structs.replace(
                volume,
                state=State.RELEASED,
                resume=Resume(point=point, tree_state=answer.get("tree_state")),
                held_since_us=None,
            )
        )

    async def sync(self, name: str, level: str, timeout_s: float) -> dict[str, Any]:
        volume = self._registry.get(name)
        wanted = receipts.parse_level(level)
        if volume.state is State.RELEASED and volume.resume is not None:
            running = [site for site in self._embedded.sites if not self._embedded.is_stopped(site)]
            return await resting.receipt(self._monitor, running, volume, wanted, timeout_s)
        self._check_site_runs(volume.leader)
        return await self._embedded.clients[volume.leader].agent.sync(name, level, timeout_s)

    def _check_not_moving(self, volume: Volume) -> None:
        if volume.operation is not None:
            raise errors.Refused(
                f"volume {volume.name} is being moved by operation {volume.operation}",
                reason="failover-running",
                hint="wait for it: dkctl status shows how far it is",
                operation=volume.operation,
            )


def _after_its_end(volume: Volume) -> Volume:
    """A reign whose capture ended in order is over: the next begins where it ended."""
    resume = volume.resume
    if resume is None or positions.parse(resume.point.position).epoch < volume.epoch:
        return volume
    volume, epoch = registry.with_next_epoch(volume)
    return registry.with_reign(
        volume,
        Reign(site=volume.leader, epoch=epoch, parent=resume.point),
        path=volume.paths[volume.leader],
        resume=resume,
    )


def _released(volume: Volume) -> dict[str, Any]:
    assert volume.resume is not None, "a released volume has an end"
    point = volume.resume.point
    return {"volume": volume.name, "position": point.position, "hash": point.hash}


def _same_settings(status: dict[str, Any], volume: Volume) -> bool:
    same_probe = volume.probe == "auto" or status.get("probe") == volume.probe
    return (
        status.get("durability") == volume.durability and status.get("policy") == volume.policy and same_probe
    )


def _look_at(path: str) -> admissions.PathFacts:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return admissions.PathFacts(path, exists=False, is_directory=False)
    return admissions.PathFacts(path, exists=True, is_directory=stat.S_ISDIR(mode))
