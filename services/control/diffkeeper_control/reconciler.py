"""Makes sites that come back do what was decided while they were away.

It looks at the whole observed state and compares it with the registry, every time anew: a replicator with
another role than it should have is told; an agent that still captures a volume somebody else leads is fenced
and relieved of it; capture whose program ended without anybody releasing it is released. What fails is tried
again at the next look.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog

from diffkeeper.domain import errors, volumes
from diffkeeper_control import fencing, left_directories, processes, registry, roles, streams
from diffkeeper_control.door_keeper import DoorKeeper
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.hands import SiteHands
from diffkeeper_control.lifecycle import Lifecycle
from diffkeeper_control.monitor import INTERVAL_S, Monitor
from diffkeeper_control.registry import State, Volume

# Whoever started the program is given this long to say itself that it ended.
RELEASE_AFTER_S = 5.0
PROGRAM_GRACE_S = 5.0
# A correction that failed is not tried again before.
RETRY_S = 2.0
# A former leader that fenced itself is fenced at its stream again after so long.
RETIRED_S = 30.0
# Reasons for which a replica is built anew from the log without asking.
_REBUILT = frozenset({"tail-beyond-parent", "journal-damaged", "directory-left"})

_log = structlog.get_logger("reconciler")


class Reconciler:
    def __init__(
        self,
        embedded: Embedded,
        known: registry.Registry,
        monitor: Monitor,
        hands: SiteHands,
        lifecycle: Lifecycle,
        doors: DoorKeeper,
    ) -> None:
        self._doors = doors
        self._embedded = embedded
        self._registry = known
        self._monitor = monitor
        self._hands = hands
        self._lifecycle = lifecycle
        # When a correction may be tried again, and since when a program is known to have ended.
        self._not_before: dict[tuple[str, str, str], float] = {}
        self._ended_since: dict[str, float] = {}
        self._seen_running: set[tuple[str, int | None]] = set()

    async def run(self) -> None:
        while True:
            await self._monitor.look_all()
            await self.correct()
            await self._doors.correct()
            await asyncio.sleep(INTERVAL_S)

    async def correct(self) -> None:
        """One comparison of what is with what should be."""
        for volume in self._registry.all():
            if volume.operation is not None or self._lifecycle.lock(volume.name).locked():
                continue
            for site in self._embedded.sites:
                if not self._embedded.is_stopped(site):
                    await self._correct_replica(volume, site)
                    await self._rebuild_replica(volume, site)
                    await self._correct_agent(volume, site)
            await self._release_if_ended(volume)

    async def before_role(self, site: str, role: str) -> None:
        """Called while a site starts: its streams are fenced and exist before anything there reads or writes
        them.
        """
        if role != "replicator":
            return
        for volume in self._registry.all():
            if volume.operation is not None:
                continue
            if volume.leader != site:
                await self._fence(volume, site)
            running = [site] if site == volume.leader else []
            await streams.ensure(volume.name, self._embedded.clients, running or [site], volume.leader)

    async def _fence(self, volume: Volume, site: str) -> None:
        if all(reign.site != site for reign in volume.chain):
            return  # it never wrote
        log = await self._embedded.clients[site].broker.log()
        tail = await fencing.fence(log, volumes.Origin(volume.name, site), volume.epoch)
        if tail is not None:
            _log.info("fenced a former leader", volume=volume.name, site=site, end=str(tail.position))

    async def _correct_replica(self, volume: Volume, site: str) -> None:
        heard = self._monitor.replicator(site)
        if left_directories.is_pending(volume, site) and not self._monitor.agent(site).fresh:
            return  # only its agent can say that nobody writes there any more
        if left_directories.is_lost(volume, site, heard.volume(volume.name)):
            _log.error("a left directory was not taken back", volume=volume.name, site=site)
            self._hands.keep_apart(volume.name, site)
            return
        if not heard.fresh or roles.is_met(volume, site, heard.volume(volume.name)):
            return
        await self._try(("role", volume.name, site), self._hands.tell_role(volume.name, site))

    async def _rebuild_replica(self, volume: Volume, site: str) -> None:
        """A replica that holds what the chain left behind, whose journal is damaged, or whose directory was let go for a
        promotion that was taken back before anybody heard of it, does not help itself.

        What it has is set aside before anything is built anew. A fork is not among the reasons: there somebody's log is
        wrong, and a person must look.
        """
        status = self._monitor.replicator(site).volume(volume.name) or {}
        reason = (status.get("error") or {}).get("reason")
        if site == volume.leader or reason not in _REBUILT or not self._monitor.replicator(site).fresh:
            return
        if left_directories.is_pending(volume, site):
            return  # it is taken back by its undo records
        _log.warning("rebuilding a replica", volume=volume.name, site=site, why=reason)
        rebuilding = self._embedded.clients[site].replicator.rebuild(volume.name)
        await self._try(("rebuild", volume.name, site), rebuilding)

    async def _correct_agent(self, volume: Volume, site: str) -> None:
        heard = self._monitor.agent(site)
        status = heard.volume(volume.name)
        if site == volume.leader:
            # An agent that starts anew knows nothing until it is told; programs wait in its gate meanwhile.
            if heard.fresh and status is None and volume.state is State.CAPTURED:
                await self._try(("resume", volume.name, site), self._lifecycle.resume(volume.name))
            elif heard.fresh and status is not None and self._lacks_lease(volume, status):
                await self._try(("lease", volume.name, site), self._hands.begin_capture(volume))
            return
        if not heard.fresh or status is None or status.get("state") == "released":
            return
        if left_directories.is_pending(volume, site):
            return  # it is given up as a whole
        if int(status.get("epoch") or 0) >= volume.epoch:
            return
        await self._try(("retire", volume.name, site), self._retire(volume, site, status))

    def _lacks_lease(self, volume: Volume, status: dict[str, Any]) -> bool:
        """A reign that began without a majority, or before automatic failover was wanted; or goes on after it was."""
        has = (status.get("lease") or {}).get("ttl_ms")
        captures = status.get("state") in ("scanning", "capturing") and volume.state is State.CAPTURED
        return captures and status.get("epoch") == volume.epoch and has != self._hands.lease_order()

    async def _retire(self, volume: Volume, site: str, status: dict[str, Any]) -> None:
        """An agent that came back believing that it leads: fence it, end its program, end its capture."""
        _log.warning("retiring a former leader", volume=volume.name, site=site, state=status.get("state"))
        await self._fence(volume, site)
        program = status.get("program") or {}
        if program.get("running"):
            await self.end_program(site, volume.name)
        if status.get("state") == "fenced":
            # It has ended by itself, and has nothing to release; looked at again now and then.
            self._not_before["retire", volume.name, site] = time.monotonic() + RETIRED_S
            return
        await self._embedded.clients[site].agent.release(volume.name)
        await self._monitor.look(site)

    async def end_program(self, site: str, volume: str) -> None:
        """SIGTERM to the volume's program at a site, a bounded wait, SIGKILL to it and all below it."""
        status = self._monitor.agent(site).volume(volume)
        program = (status or {}).get("program") or {}
        process = processes.identify(int(program["pid"])) if program.get("running") else None
        if process is None:
            return
        family = processes.with_descendants([process])
        if not await processes.stop(process, PROGRAM_GRACE_S):
            _log.warning("a program was killed, for it did not stop", volume=volume, pid=process.pid)
        await processes.kill_all(family)

    def note_running(self, volume: Volume) -> None:
        """Its program has been started or seen to run: it may be over before the next comparison sees it."""
        self._seen_running.add((volume.name, volume.held_since_us))

    async def _release_if_ended(self, volume: Volume) -> None:
        status = self._monitor.agent(volume.leader).volume(volume.name)
        program = (status or {}).get("program")
        reign = (volume.name, volume.held_since_us)
        if program and program.get("running"):
            self._seen_running.add(reign)
        over = (
            volume.state is State.CAPTURED
            and volume.held_since_us is not None
            and reign in self._seen_running
            and self._monitor.agent(volume.leader).fresh
            and program is not None
            and not program.get("running")
        )
        if not over:
            self._ended_since.pop(volume.name, None)
            return
        since = self._ended_since.setdefault(volume.name, time.monotonic())
        if time.monotonic() - since >= RELEASE_AFTER_S:
            assert program is not None, "it ended, so it was there"
            _log.info("the program ended and nobody said so", volume=volume.name)
            await self._try(
                ("release", volume.name, volume.leader),
                self._lifecycle.release(volume.name, program.get("exit_code")),
            )

    async def _try(self, key: tuple[str, str, str], correction: Any) -> None:
        if time.monotonic() < self._not_before.get(key, 0.0):
            correction.close()
            return
        try:
            await correction
        except errors.DiffKeeperError as error:
            self._not_before[key] = time.monotonic() + RETRY_S
            _log.warning(
                "a correction failed; it will be tried again", what=" ".join(key), error=error.message
            )
