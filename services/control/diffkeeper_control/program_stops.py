"""Stopping and starting a volume's program where it is, without moving the volume: what a rollback needs."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import structlog

from diffkeeper.domain import errors
from diffkeeper_control import registry
from diffkeeper_control.hands import SiteHands
from diffkeeper_control.lifecycle import Lifecycle
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.reconciler import Reconciler
from diffkeeper_control.registry import State, Volume

_log = structlog.get_logger("programs")


class ProgramStops:
    def __init__(
        self,
        known: registry.Registry,
        monitor: Monitor,
        lifecycle: Lifecycle,
        reconciler: Reconciler,
        hands: SiteHands,
    ) -> None:
        self._registry = known
        self._monitor = monitor
        self._lifecycle = lifecycle
        self._reconciler = reconciler
        self._hands = hands

    async def stop(self, name: str) -> dict[str, Any]:
        """End the program; whoever ran it then ends its capture, with everything it wrote in the log."""
        volume = self._registry.get(name)
        self._check_not_moving(volume)
        await self._monitor.look(volume.leader)
        pid = self._running(volume)
        if pid is not None:
            _log.info("stopping a program", volume=name, pid=pid)
            self._reconciler.note_running(volume)
            await self._reconciler.end_program(volume.leader, name)
            await self._monitor.look(volume.leader)
        return {"volume": name, "site": volume.leader, "stopped": pid}

    async def start(self, name: str) -> dict[str, Any]:
        """Start the program that was run last; capture must be on. Nothing is started twice."""
        async with self._lifecycle.lock(name):
            volume = self._registry.get(name)
            self._check_not_moving(volume)
            if volume.command is None:
                raise errors.Refused(
                    f"no program was ever run on {name}", reason="no-command", hint="dkctl run starts one"
                )
            if volume.state is not State.CAPTURED:
                raise errors.Refused(
                    f"{name} is not captured", reason="not-captured", hint="dkctl attach captures it again"
                )
            pid = await self._hands.start_program(name, volume.leader)
            volume = msgspec.structs.replace(volume, held_since_us=time.time_ns() // 1000)
            self._reconciler.note_running(self._registry.put(volume))
            await self._monitor.look(volume.leader)
            return {"volume": name, "site": volume.leader, "pid": pid}

    def _running(self, volume: Volume) -> int | None:
        status = self._monitor.agent(volume.leader).volume(volume.name)
        program = (status or {}).get("program") or {}
        return int(program["pid"]) if program.get("running") else None

    def _check_not_moving(self, volume: Volume) -> None:
        if volume.operation is not None:
            raise errors.Refused(
                f"volume {volume.name} is being moved by operation {volume.operation}",
                reason="failover-running",
                hint="wait for it: dkctl status shows how far it is",
                operation=volume.operation,
            )
