"""Replicas over a memory event log, and a leader that writes frames for them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.made_logs import FrameChain

from diffkeeper.domain import frames, volumes
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op, write
from diffkeeper.log import event_log, memory_event_log
from diffkeeper_replicator import reports
from diffkeeper_replicator.cursor import Point, Role, VolumeFiles, WantedLink
from diffkeeper_replicator.replica import Replica

VOLUME = "orders"


class Leader:
    """What a capture agent at a site publishes."""

    def __init__(self, log: event_log.EventLog, tip: frames.Tip = frames.ORIGIN_TIP, epoch: int = 1) -> None:
        self.log = log
        self.origin = volumes.Origin(VOLUME, log.site)
        self.chain = FrameChain(VOLUME, log.site, tip)
        self.chain.epoch = epoch
        self.frames: list[frames.Frame] = []

    async def publish(
        self, *run: Delta, flags: frames.Flag = frames.NO_FLAGS, successor: str = ""
    ) -> frames.Frame:
        return await self.append(self.chain.frame(run, flags, successor))

    async def append(self, frame: frames.Frame) -> frames.Frame:
        last = await self.log.last(self.origin)
        await self.log.append(self.origin, frame, last.stream_sequence if last is not None else 0)
        self.frames.append(frame)
        return frame

    async def base(self) -> frames.Frame:
        """One file (id 2) and the end of the scan."""
        return await self.publish(
            Delta(Op.ATTR, ROOT_ID, args=({"mode": 0o755, "uid": 0, "gid": 0},)),
            Delta(Op.CREATE, 2, args=(ROOT_ID, b"data", 0o644, 0, 0)),
            write(2, 0, b"base"),
            flags=frames.Flag.BASE | frames.Flag.BASE_END,
        )


def link(site: str, epoch: int, parent: frames.Tip | None = None) -> WantedLink:
    point = Point(str(parent.position), parent.hash.hex()) if parent is not None else None
    return WantedLink(site, epoch, point)


def follow(*chain: WantedLink, **changes: Any) -> Role:
    return Role(role="follow", epoch=chain[-1].epoch, leader=chain[-1].site, chain=chain, **changes)


class Site:
    """A site with one replica of the volume; ``restarted`` loses everything but the disk."""

    def __init__(self, broker: memory_event_log.MemoryBroker, name: str, under: Path) -> None:
        self.log = memory_event_log.MemoryEventLog(broker, name)
        self.files = VolumeFiles(under / name / "replicator" / VOLUME)
        self.path = under / name / "volumes" / VOLUME
        self.tasks: list[asyncio.Task[Any]] = []
        self.replica = self._make()

    def _make(self) -> Replica:
        clock = itertools.count(1_700_000_100_000_000)
        return Replica(VOLUME, self.log, self.files, self.path, self._spawn, lambda: next(clock))

    def _spawn(self, name: str, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self.tasks.append(task)
        return task

    async def restart(self, *, orderly: bool) -> None:
        """``orderly`` or as after a kill: nothing is written at the end."""
        if orderly:
            await self.replica.close()
        else:
            await self.crash()
        self.replica = self._make()
        await self.replica.resume()

    async def crash(self) -> None:
        # What is being written is written; a killed process begins nothing more.
        async with self.replica._changing:
            for task in self.tasks:
                task.cancel()
            await self.replica._end(clean=False)

    async def end(self) -> None:
        await self.replica.close()
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.result()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def sites(under: Path, *names: str) -> AsyncIterator[list[Site]]:
    broker = memory_event_log.MemoryBroker()
    made = [Site(broker, name, under) for name in names]
    for site in made:
        await site.log.create_origin(volumes.Origin(VOLUME, site.log.site))
    try:
        yield made
    finally:
        for site in made:
            await site.end()


async def until(holds: Callable[[], object], what: Callable[[], object] = str, seconds: float = 10) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110  the condition has no event of its own
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"did not come about: {what()}") from None


async def applied(site: Site, frame: frames.Frame) -> None:
    await until(
        lambda: site.replica.status()["applied"] == str(frame.position),
        lambda: (frame.position, site.replica.status()),
    )


async def journalled(site: Site, frame: frames.Frame) -> None:
    await until(
        lambda: site.replica.status()["journalled"] == str(frame.position),
        lambda: (frame.position, site.replica.status()),
    )


async def proven(site: Site) -> None:
    """The replica equals the log."""
    proof = await reports.prove(site.replica)
    assert proof["ok"] is True, proof


def random_writes(seed: int) -> Iterator[Delta]:
    rng = random.Random(seed)
    while True:
        yield write(2, rng.randrange(100_000), rng.randbytes(rng.randrange(1, 5000)))
