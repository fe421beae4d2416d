"""Drills: a failover rehearsed on a clone, now or on a schedule. No traffic moves and nothing is promised.

Schedules and the last reports of each volume are kept in ``control/drills.json``.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import structlog

from diffkeeper import atomic_files
from diffkeeper.domain import errors
from diffkeeper_control import (
    drill_programs,
    drill_reports,
    failover_requests,
    processes,
    registry,
)
from diffkeeper_control.clones import Clones
from diffkeeper_control.drill_reports import Asked, Report, Schedule
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.failover_requests import LeaderState
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.operations import OperationStore
from diffkeeper_control.registry import Registry, Struct
from diffkeeper_control.views import Views

LOOK_S = 2.0
KEPT_REPORTS = 20

_log = structlog.get_logger("drills")


class _File(Struct, frozen=True):
    schedules: list[Schedule] = msgspec.field(default_factory=list)
    # Of each volume, the newest last.
    reports: dict[str, list[Report]] = msgspec.field(default_factory=dict)


class Drills:
    def __init__(
        self,
        embedded: Embedded,
        known: Registry,
        monitor: Monitor,
        operations: OperationStore,
        views: Views,
        clones: Clones,
    ) -> None:
        self._embedded = embedded
        self._registry = known
        self._monitor = monitor
        self._operations = operations
        self._views = views
        self._clones = clones
        self._path = embedded.layout.control / "drills.json"
        self._file = _load(self._path)
        self._running: set[str] = set()

    def reports(self, volume: str) -> list[Report]:
        return self._file.reports.get(volume, [])

    def schedule_of(self, volume: str) -> Schedule | None:
        return next((one for one in self._file.schedules if one.volume == volume), None)

    def set_schedule(self, volume: str, schedule: Schedule | None) -> None:
        """One schedule a volume; None ends it."""
        self._registry.get(volume)
        others = [one for one in self._file.schedules if one.volume != volume]
        self._save(
            msgspec.structs.replace(self._file, schedules=[*others, *([schedule] if schedule else [])])
        )

    async def run(self) -> None:
        """Hold the drills that are due, one after the other."""
        while True:
            await self._clones.sweep()
            await asyncio.sleep(LOOK_S)
            for schedule in list(self._file.schedules):
                if self._is_due(schedule):
                    await self._hold_scheduled(schedule)

    def _is_due(self, schedule: Schedule) -> bool:
        done = self.reports(schedule.volume)
        last_us = done[-1].started_us if done else 0
        return (time.time_ns() // 1000 - last_us) / 1e6 >= schedule.every_s

    async def _hold_scheduled(self, schedule: Schedule) -> None:
        try:
            try:
                report = await self.hold(schedule.volume, schedule.asked)
            except errors.DiffKeeperError as error:
                report = _refused(schedule, error)
                self._keep(report)
        except OSError as error:
            _log.error("a scheduled drill could not be recorded", volume=schedule.volume, error=str(error))
            return
        log = _log.info if report.ok else _log.error
        log("a scheduled drill was held", volume=report.volume, verdict=report.verdict)

    async def hold(self, name: str, asked: Asked) -> Report:
        """One drill; what stops the rehearsal stands in its report, what forbids it is raised."""
        drill_reports.check(asked)
        volume = self._registry.get(name)
        if name in self._running:
            raise errors.Refused(
                f"a drill of {name} is being held", reason="drill-running", hint="wait for its end"
            )
        self._running.add(name)
        try:
            loss = await self._admit(volume, asked)
            report = await self._rehearse(volume, asked, loss)
        finally:
            self._running.discard(name)
        self._keep(report)
        return report

    async def _admit(self, volume: registry.Volume, asked: Asked) -> failover_requests.Loss:
        """Everything that would refuse a failover to that site refuses a drill of it."""
        if volume.command is None:
            raise errors.Refused(
                f"volume {volume.name} has no program: it was attached, not run",
                reason="no-program",
                hint="dkctl run registers one; dkctl verify checks the replicas of an attached one",
            )
        known = [site for site in (volume.leader, asked.to) if site in self._embedded.sites]
        await asyncio.gather(*(self._monitor.look(site) for site in known))
        target = self._monitor.replicator(asked.to)
        loss = self._views.loss_bound(volume)
        seen = failover_requests.Seen(
            sites=self._embedded.sites,
            leader=LeaderState.ALIVE,  # whether it is does not matter to a rehearsal
            loss=loss,
            target_running=asked.to in self._embedded.sites and not self._embedded.is_stopped(asked.to),
            target=target.volume(volume.name) if target.fresh else None,
        )
        failover_requests.accept(volume, failover_requests.Asked(to=asked.to), seen, volume.highest_epoch + 1)
        return loss

    async def _rehearse(self, volume: registry.Volume, asked: Asked, loss: failover_requests.Loss) -> Report:
        began, started_us = time.monotonic(), time.time_ns() // 1000
        steps: dict[str, float] = {}
        position, clone_ms, output = None, None, ""
        failure: errors.DiffKeeperError | None = None
        try:
            replicator = self._embedded.clients[asked.to].replicator
            answer = await replicator.catch_up(volume.name, None, asked.timeout_s)
            steps["catch_up"] = float(answer["took_ms"])
            me = processes.identify(os.getpid())
            assert me is not None, "this process runs"
            clone = await self._clones.make(volume.name, asked.to, me)
            position, clone_ms = clone.position, clone.took_ms
            log = self._embedded.layout.logs / f"drill-{volume.name}.log"
            try:
                port = drill_programs.free_port()
                rehearsal = drill_programs.rehearse(volume, asked.to, clone.path, port)
                start = time.monotonic()
                program = drill_programs.DrillProgram(rehearsal, log)
                try:
                    async with program:
                        await program.works(asked.check, asked.timeout_s)
                        steps["program"] = (time.monotonic() - start) * 1000
                finally:
                    output = program.output()
            finally:
                await self._clones.remove(asked.to, clone.id)
        except errors.DiffKeeperError as error:
            failure = error
        known_ms, taken_from = self._seen_before(volume.name)
        return drill_reports.judge(
            volume.name,
            asked,
            steps_ms=steps,
            known_ms=known_ms,
            taken_from=taken_from,
            behind_ms=loss.ms,
            behind_frames=loss.frames,
            position=position,
            clone_ms=clone_ms,
            error=failure,
            output=output,
            started_us=started_us,
            took_ms=(time.monotonic() - began) * 1000,
        )

    def _seen_before(self, volume: str) -> tuple[dict[str, float], str | None]:
        """What the steps took that a drill leaves out, when the volume last failed over."""
        done = [one for one in self._operations.all(volume) if "attach" in one.timings_ms]
        return (done[-1].timings_ms, done[-1].id) if done else ({}, None)

    def _keep(self, report: Report) -> None:
        kept = [*self.reports(report.volume), report][-KEPT_REPORTS:]
        self._save(msgspec.structs.replace(self._file, reports={**self._file.reports, report.volume: kept}))

    def _save(self, file: _File) -> None:
        atomic_files.write_json(self._path, msgspec.to_builtins(file))
        self._file = file


def _refused(schedule: Schedule, error: errors.DiffKeeperError) -> Report:
    return drill_reports.judge(
        schedule.volume,
        schedule.asked,
        steps_ms={},
        known_ms={},
        taken_from=None,
        behind_ms=None,
        behind_frames=None,
        position=None,
        clone_ms=None,
        error=error,
        output="",
        started_us=time.time_ns() // 1000,
        took_ms=0.0,
    )


def _load(path: Path) -> _File:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return _File()
    except (OSError, msgspec.DecodeError) as error:
        raise errors.Misconfigured(
            f"{path}, the schedules and reports of drills, cannot be read: {error}; it was left as it is",
            reason="drills-unreadable",
            hint="move it away to begin anew",
        ) from error
