"""Watches the leases and starts the failovers that ``automatic`` allows. Its eyes are the lease store's records, read again and
again: an agent renews only while its site's log moves, so a record that stands still says that the whole path does.

A question that nobody answers begins the watch anew: silence counts only while the store could have been written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from diffkeeper.domain import errors, leases
from diffkeeper_control import automatic, registry
from diffkeeper_control.automatic import Others
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.lease_office import LeaseOffice
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.registry import State

# How often the leader of each lease's Raft group is looked at.
PLACE_EVERY_S = 5.0
ACROSS_TIMEOUT_S = 2.0

_log = structlog.get_logger("watchman")

# Accepts and starts the move of a volume to a site; raises the refusals of any failover.
Begin = Callable[[str, str, float], Awaitable[None]]


@dataclass(slots=True)
class _Seen:
    watch: leases.Watch | None = None
    failures: int = 0
    not_before: float = 0.0
    placed_at: float = 0.0
    trouble: str = ""


class Watchman:
    def __init__(
        self,
        embedded: Embedded,
        known: registry.Registry,
        monitor: Monitor,
        office: LeaseOffice,
        begin: Begin,
    ) -> None:
        self._embedded = embedded
        self._registry = known
        self._monitor = monitor
        self._office = office
        self._begin = begin
        self._seen: dict[str, _Seen] = {}

    async def run(self) -> None:
        if self._office.store is None:
            return
        pause_s = leases.renew_every_ms(self._office.ttl_ms) / 1000 / 2
        while True:
            await self.look_all()
            await asyncio.sleep(pause_s)

    async def look_all(self) -> None:
        watched = [volume for volume in self._registry.all() if volume.state is not State.RELEASED]
        await asyncio.gather(*(self.look(volume.name) for volume in watched))

    async def look(self, name: str) -> None:
        """One look at one lease, and what follows from it."""
        store = self._office.store
        assert store is not None, "there is something to watch only where there are leases"
        seen = self._seen.setdefault(name, _Seen())
        try:
            held = await store.read(name)
        except errors.DiffKeeperError as error:
            seen.watch = None
            seen.trouble = error.message
            return
        seen.trouble = ""
        if held is None:
            return
        now = time.monotonic()
        seen.watch = leases.saw(seen.watch, held, now)
        volume = self._registry.find(name)
        if volume is None:
            return
        if held.lease.beat and held.lease.epoch == volume.epoch:
            seen.failures = 0  # whoever reigns now has begun to
        if automatic.is_over(volume, seen.watch, now) and now >= seen.not_before:
            await self._take_over(volume, seen, seen.watch)
        elif now - seen.placed_at > PLACE_EVERY_S:
            seen.placed_at = now
            await self._place(volume, seen)

    async def _place(self, volume: registry.Volume, seen: _Seen) -> None:
        store = self._office.store
        assert store is not None, "asked only where there are leases"
        try:
            if not await store.lead_elsewhere(volume.name, volume.leader):
                _log.info("moving the keeper of a lease", volume=volume.name, away_from=volume.leader)
        except errors.DiffKeeperError as error:
            seen.trouble = error.message

    async def _take_over(self, volume: registry.Volume, seen: _Seen, watch: leases.Watch) -> None:
        others = await self._others_now(volume)
        target = automatic.choose(volume, others)
        if automatic.why_never(volume) or automatic.why_not_now(volume, others) or target is None:
            return  # the status says why
        _log.warning(
            "a leader is silent; failing over",
            volume=volume.name,
            leader=volume.leader,
            to=target,
            silent_ms=round(watch.silent_ms(time.monotonic())),
        )
        seen.failures += 1
        seen.not_before = time.monotonic() + automatic.pause_s(seen.failures)
        try:
            await self._begin(volume.name, target, watch.silent_ms(time.monotonic()))
        except errors.DiffKeeperError as error:
            _log.warning("no automatic failover", volume=volume.name, why=error.message)

    async def _others_now(self, volume: registry.Volume) -> Others:
        among = [site for site in self._embedded.sites if site != volume.leader]
        running = [site for site in among if not self._embedded.is_stopped(site)]
        await asyncio.gather(*(self._monitor.look(site) for site in running))
        return self._others(volume, among)

    def _others(self, volume: registry.Volume, among: list[str]) -> Others:
        heard = {site: self._monitor.replicator(site) for site in among}
        return Others(
            frozenset(site for site in among if not self._embedded.is_stopped(site)),
            {site: one.volume(volume.name) if one.fresh else None for site, one in heard.items()},
        )

    def view(self, volume: registry.Volume) -> dict[str, Any]:
        """What the status says: ``state`` is off, never, ready or not-now, ``detail`` why."""
        if self._office.store is None:
            return {"state": "off", "detail": "dkctl up --auto-failover", "lease": None}
        seen = self._seen.get(volume.name, _Seen())
        held = seen.watch.held.lease if seen.watch is not None else None
        never = automatic.why_never(volume)
        among = [site for site in self._embedded.sites if site != volume.leader]
        now = automatic.why_not_now(volume, self._others(volume, among)) or seen.trouble
        return {
            "state": "never" if never else "not-now" if now else "ready",
            "detail": never or now,
            "ttl_ms": self._office.ttl_ms,
            "lease": None
            if held is None or seen.watch is None
            else {
                "site": held.site,
                "epoch": held.epoch,
                "silent_ms": round(seen.watch.silent_ms(time.monotonic())),
            },
        }
