"""Control put together: which part does what, and the few things that need several of them.

The composition root. Parts know each other only through what is handed to them here.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import structlog

from diffkeeper import __version__
from diffkeeper.domain import errors
from diffkeeper.leases.nats_lease_store import NatsLeaseStore
from diffkeeper_control import (
    drill_reports,
    failover_requests,
    operations,
    processes,
    programs,
    registry,
    settings,
)
from diffkeeper_control.branch_merges import BranchMerges
from diffkeeper_control.clones import Clones
from diffkeeper_control.coordinator import Coordinator, Spawn
from diffkeeper_control.door_keeper import DoorKeeper
from diffkeeper_control.drills import Drills
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.failover_requests import Asked
from diffkeeper_control.hands import SiteHands
from diffkeeper_control.history_reader import HistoryReader
from diffkeeper_control.lease_office import LeaseOffice
from diffkeeper_control.lifecycle import Lifecycle
from diffkeeper_control.log_reader import LogReader
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.node_care import NodeCare
from diffkeeper_control.operations import Operation, OperationStore
from diffkeeper_control.program_stops import ProgramStops
from diffkeeper_control.reconciler import Reconciler
from diffkeeper_control.shared_volumes import SharedVolumes
from diffkeeper_control.verification import Verifier
from diffkeeper_control.views import Views
from diffkeeper_control.watchman import Watchman

# A site that is to be killed is asked once more who runs there, but never waited for.
LAST_LOOK_S = 0.15
# A site that has just come back is given this long to take up its role before a failover to it is refused.
TARGET_WAIT_S = 10.0
TARGET_LOOK_S = 0.1
# How long the target of an automatic failover may take to catch up before another one is tried.
AUTOMATIC_TIMEOUT_S = 30.0
# How long one link server may take to answer before the next is asked.
LEASE_ATTEMPT_S = 0.15

_log = structlog.get_logger("control")


class ControlService:
    def __init__(self, embedded: Embedded, spawn: Spawn) -> None:
        layout = embedded.layout
        self.embedded = embedded
        self.registry = registry.Registry(layout.registry)
        self.operations = OperationStore(layout.operations)
        self.monitor = Monitor(embedded)
        self.office = LeaseOffice(_lease_store(embedded), embedded.note.lease_ttl_ms)
        self.doors = DoorKeeper(embedded, self.registry)
        self.hands = SiteHands(embedded, self.registry, self.monitor, self.doors, self.office)
        self.coordinator = Coordinator(self.operations, self.hands, spawn)
        self.lifecycle = Lifecycle(embedded, self.registry, self.monitor, self.hands, self.doors)
        self.reconciler = Reconciler(
            embedded, self.registry, self.monitor, self.hands, self.lifecycle, self.doors
        )
        self.shared = SharedVolumes(embedded, self.registry, self.monitor, self.lifecycle)
        self.branch_merges = BranchMerges(embedded, self.registry, self.lifecycle)
        self.verifier = Verifier(embedded, self.registry, self.monitor)
        self.log_reader = LogReader(embedded, self.registry, self.monitor)
        self.node_care = NodeCare(embedded, embedded.session)
        self.monitor.more_troubles = self.node_care.troubles
        self.watchman = Watchman(
            embedded, self.registry, self.monitor, self.office, self._begin_automatic_failover
        )
        self.program_stops = ProgramStops(
            self.registry, self.monitor, self.lifecycle, self.reconciler, self.hands
        )
        self.history_reader = HistoryReader(embedded, self.registry, self.monitor)
        self.views = Views(embedded, self.registry, self.monitor, self.doors, self.watchman)
        self.clones = Clones(embedded, self.registry)
        self.drills = Drills(embedded, self.registry, self.monitor, self.operations, self.views, self.clones)
        self.shutdown_asked = asyncio.Event()
        self.shutdown_timeout_s = 60.0
        self._started_us = time.time_ns() // 1000

    @property
    def pid(self) -> int:
        return os.getpid()

    async def start(self) -> None:
        """Sites, then what an earlier control left unfinished."""
        await self.embedded.start_all(self.reconciler.before_role)
        await self.monitor.look_all()
        await self.doors.start()
        self.coordinator.resume_all()

    def status(self) -> dict[str, Any]:
        embedded = self.embedded
        return {
            "deployment": {
                "dir": str(embedded.layout.dir),
                "started_us": self._started_us,
                "created_us": embedded.note.created_us,
                "version": __version__,
                "pid": self.pid,
            },
            "sites": [self.views.site(site) for site in embedded.sites],
            "volumes": [self._shown(volume) for volume in self.registry.all()],
            "operations": [operations.view(operation) for operation in self.operations.unfinished()],
            "at_us": time.time_ns() // 1000,
        }

    async def volume_now(self, name: str) -> dict[str, Any]:
        """A volume with what its sites say at this moment: this is what callers poll."""
        volume = self.registry.get(name)
        running = [site for site in self.embedded.sites if not self.embedded.is_stopped(site)]
        await asyncio.gather(*(self.monitor.look(site) for site in running))
        return self._shown(self.registry.get(volume.name))

    def _shown(self, volume: registry.Volume) -> dict[str, Any]:
        reports, schedule = self.drills.reports(volume.name), self.drills.schedule_of(volume.name)
        drill = {
            "last": drill_reports.view(reports[-1] if reports else None),
            "every_s": None if schedule is None else schedule.every_s,
        }
        return {**self.views.volume(volume), "drill": drill}

    async def begin_failover(self, name: str, asked: Asked) -> Operation:
        """Accept and start a failover, or refuse it with nothing changed."""
        until = time.monotonic() + min(asked.timeout_s, TARGET_WAIT_S)
        while True:
            async with self.lifecycle.lock(name):
                volume = self.registry.get(name)
                seen = await self._look_before_failover(volume, asked)
                try:
                    plan = failover_requests.accept(volume, asked, seen, volume.highest_epoch + 1)
                except errors.Refused as refusal:
                    coming = failover_requests.is_on_its_way(volume, asked, seen)
                    if refusal.reason != "target-not-ready" or not coming or time.monotonic() >= until:
                        raise
                else:
                    detect_ms = None if plan.planned else self.monitor.took_to_notice_ms(volume.leader)
                    operation = self.coordinator.begin(plan, seen.loss, detect_ms)
                    self.coordinator.start(operation)
                    return operation
            # Outside of the lock, for it is the reconciler that tells the target its role.
            await asyncio.sleep(TARGET_LOOK_S)

    async def _begin_automatic_failover(self, name: str, target: str, silent_ms: float) -> None:
        async with self.lifecycle.lock(name):
            volume = self.registry.get(name)
            asked = Asked(target, lease_expired=True, timeout_s=AUTOMATIC_TIMEOUT_S)
            seen = await self._look_before_failover(volume, asked)
            plan = failover_requests.accept(volume, asked, seen, volume.highest_epoch + 1)
            self.coordinator.start(self.coordinator.begin(plan, seen.loss, silent_ms))

    async def _look_before_failover(self, volume: registry.Volume, asked: Asked) -> failover_requests.Seen:
        known = [site for site in (volume.leader, asked.to) if site in self.embedded.sites]
        await asyncio.gather(*(self.monitor.look(site) for site in known))
        target = self.monitor.replicator(asked.to)
        return failover_requests.Seen(
            sites=self.embedded.sites,
            leader=self.monitor.leader_state(volume),
            loss=self.views.loss_bound(volume),
            target_running=asked.to in self.embedded.sites and not self.embedded.is_stopped(asked.to),
            target=target.volume(volume.name) if target.fresh else None,
        )

    async def stop_node(self, node: str, *, kill: bool) -> str:
        return await self.embedded.stop_node(node, kill=kill)

    async def start_node(self, node: str) -> str:
        return await self.embedded.start_node(node)

    async def stop_site(self, site: str, *, kill: bool) -> None:
        if kill:
            programs_there = await self._programs_at(site)
            killed = await self.embedded.kill_site(site, programs_there)
            _log.warning("site killed", site=site, processes=len(killed))
        else:
            await self._end_work_at(site)
            await self.embedded.stop_site(site)
        await self.monitor.look(site)

    async def start_site(self, site: str) -> None:
        await self.embedded.start_site(site, self.reconciler.before_role)
        await self.monitor.look(site)
        await self.reconciler.correct()

    async def _programs_at(self, site: str) -> set[processes.ProcessId]:
        """Programs run through us: those the agent knows, and those that carry our mark."""
        try:
            async with asyncio.timeout(LAST_LOOK_S):
                await self.monitor.look(site)
        except TimeoutError:
            pass  # what it said last must do
        gate = str(self.embedded.layout.gate(site))
        found = processes.with_environment(programs.GATE, gate) | processes.with_argument(gate)
        for volume in (self.monitor.agent(site).answer or {}).get("volumes", []):
            program = volume.get("program") or {}
            process = processes.identify(int(program["pid"])) if program.get("running") else None
            if process is not None:
                found.add(process)
        return processes.with_descendants(found)

    async def _end_work_at(self, site: str) -> None:
        """Programs first, then their capture: so that a stop loses nothing."""
        for volume in self.registry.all():
            if volume.leader != site or volume.operation is not None or self.embedded.is_stopped(site):
                continue
            await self.monitor.look(site)
            await self.reconciler.end_program(site, volume.name)
            status = self.monitor.agent(site).volume(volume.name)
            if status is None or status.get("state") not in ("scanning", "capturing"):
                continue
            try:
                await self.lifecycle.release(volume.name, None)
            except errors.DiffKeeperError as error:
                # The spool keeps what is not safe yet, and the agent goes on with it after the next start.
                _log.warning("capture was not ended in order", volume=volume.name, error=error.message)

    def ask_shutdown(self, timeout_s: float) -> None:
        self.shutdown_timeout_s = timeout_s
        self.shutdown_asked.set()

    async def stop(self) -> None:
        """Everything in the order of the data, within ``shutdown_timeout_s``, then by SIGKILL."""
        try:
            async with asyncio.timeout(self.shutdown_timeout_s):
                await asyncio.gather(*(self._end_work_at(site) for site in self.embedded.sites))
                await self.embedded.stop_all()
                await self.doors.stop()
        except TimeoutError:
            _log.error("an ordered stop took too long; killing what is left")
            for site in self.embedded.sites:
                if self.embedded.has_processes(site):
                    await self.embedded.kill_site(site, await self._programs_at(site))
                    self.embedded.note.sites[site].stopped = False
            await self.doors.stop()


def _lease_store(embedded: Embedded) -> NatsLeaseStore | None:
    if not embedded.note.auto_failover:
        return None
    servers = settings.link_urls(embedded.note)
    return NatsLeaseStore.open(
        servers, password=embedded.secret, name="diffkeeper-control-lease", attempt_s=LEASE_ATTEMPT_S
    )
