"""The gate of one volume: sync calls wait here until what they cover has its receipt.

Group commit: all calls that wait share one barrier, and those that come while it is on its way share the
next. A call is only ever let go on, never answered: what it returns is the kernel's own word. A level that
is not met is waited for; under the policy ``degrade`` it is lowered after a while, loudly, and restored once
it can be met in time again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from diffkeeper.domain import frames
from diffkeeper.domain.receipts import Level, Receipt
from diffkeeper.domain.volumes import UnmetPolicy

_log = structlog.get_logger("gate")


class Source(Protocol):
    """Where stopped calls come from: a run wrapper's connection."""

    def let_go(self, idents: Sequence[int]) -> None:
        """Let these calls go on; those that ended meanwhile are passed over."""


class Barriers(Protocol):
    """What the gate needs of a volume's capture. Neither returns for a volume that failed or was fenced."""

    async def cut_barrier(self, calls: Sequence[Call]) -> frames.Tip:
        """Everything captured up to now, framed and offered to spool and stream; the last frame."""

    async def reach(self, tip: frames.Tip, level: Level) -> Receipt:
        """Wait until ``tip`` has ``level``."""


@dataclass(frozen=True, slots=True)
class Call:
    """One stopped call."""

    ident: int
    pid: int
    name: str
    since_us: int


class Gate:
    def __init__(
        self,
        volume: str,
        barriers: Barriers,
        *,
        level: Level,
        policy: UnmetPolicy = UnmetPolicy.BLOCK,
        degrade_after_s: float = 30.0,
    ) -> None:
        self.level = level  # as configured
        self.effective = level  # Invariant: effective <= level, and equal under the policy ``block``
        self.total = 0
        self.batches = 0
        self._volume = volume
        self._barriers = barriers
        self._policy = policy
        self._degrade_after_s = degrade_after_s
        self._arrived = asyncio.Event()
        self._new: dict[tuple[Source, int], Call] = {}
        self._served: dict[tuple[Source, int], Call] = {}

    def arrive(self, source: Source, ident: int, pid: int, name: str) -> None:
        """A call was stopped. At level ``observe`` it goes on at once: the probe itself marks the barrier."""
        self.total += 1
        if self.effective is Level.OBSERVE:
            source.let_go([ident])
            return
        self._new[source, ident] = Call(ident, pid, name, time.time_ns() // 1000)
        self._arrived.set()

    def forget(self, source: Source) -> None:
        """A source is gone; what still waits behind it comes again from another."""
        for table in (self._new, self._served):
            for key in [key for key in table if key[0] is source]:
                del table[key]

    def waiting_threads(self) -> set[int]:
        return {call.pid for call in (*self._served.values(), *self._new.values())}

    def waiting(self) -> list[dict[str, Any]]:
        """For the status: what waits, longest first."""
        calls = [*self._served.values(), *self._new.values()]
        return [
            {"call": call.name, "pid": call.pid, "since_us": call.since_us, "level": self.effective.word}
            for call in sorted(calls, key=lambda call: call.since_us)
        ]

    async def run(self) -> None:
        """Serve for ever; the owner cancels it."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._arrived.wait()
                await self.serve_waiting(group)

    async def serve_waiting(self, group: asyncio.TaskGroup) -> None:
        """One barrier for all that wait now. ``group`` owns the watch over a lowered level."""
        self._arrived.clear()
        self._served, self._new = self._new, {}
        if not self._served:
            return
        self.batches += 1
        await self._satisfy(list(self._served.values()), group)
        by_source: dict[Source, list[int]] = {}
        for source, ident in self._served:
            by_source.setdefault(source, []).append(ident)
        self._served = {}
        for source, idents in by_source.items():
            source.let_go(idents)

    async def _satisfy(self, calls: list[Call], group: asyncio.TaskGroup) -> None:
        """Until the calls have a receipt at the level in force, which the policy may lower meanwhile."""
        if self._policy is UnmetPolicy.BLOCK:
            # Nothing is ever lowered, so nothing has to be watched: two tasks less a barrier.
            await self._barriers.reach(await self._barriers.cut_barrier(calls), self.effective)
            return
        cut = asyncio.ensure_future(self._barriers.cut_barrier(calls))
        try:
            while self.effective is not Level.OBSERVE:
                if not await self._in_time(cut, group):
                    continue
                reached = asyncio.ensure_future(self._barriers.reach(cut.result(), self.effective))
                try:
                    if await self._in_time(reached, group):
                        reached.result()
                        return
                finally:
                    reached.cancel()
        finally:
            cut.cancel()

    async def _in_time(self, work: asyncio.Future[Any], group: asyncio.TaskGroup) -> bool:
        """Whether ``work`` ended within the policy's patience; if not, the level is lowered."""
        patience = self._degrade_after_s if self._policy is UnmetPolicy.DEGRADE else None
        done, _ = await asyncio.wait({work}, timeout=patience)
        if not done:
            self._lower(group)
        return bool(done)

    def _lower(self, group: asyncio.TaskGroup) -> None:
        was = self.effective
        self.effective = Level(was - 1)
        _log.warning(
            "durability lowered: the level was not met in time",
            volume=self._volume,
            configured=self.level.word,
            was=was.word,
            now=self.effective.word,
            after_s=self._degrade_after_s,
        )
        if was is self.level:
            group.create_task(self._restore(), name=f"restore level of {self._volume}")

    async def _restore(self) -> None:
        """Until a barrier of our own meets the configured level in time."""
        while True:
            started = time.monotonic()
            tip = await self._barriers.cut_barrier(())
            await self._barriers.reach(tip, self.level)
            if time.monotonic() - started <= self._degrade_after_s:
                break
        self.effective = self.level
        _log.warning("durability restored", volume=self._volume, now=self.level.word)
