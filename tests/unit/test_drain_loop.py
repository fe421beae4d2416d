"""When the ring is read and volumes are asked: when something came, when they said so, and else not at all."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from tests.support.memory_probes import MemoryProbe

from diffkeeper_capture import records, write_lanes
from diffkeeper_capture.drain_loop import DrainLoop

SLOT = 0  # of the records that the memory ring makes


class Volume:
    """Says what it is told to say."""

    is_choked = False
    is_behind = False

    def __init__(self, probe: MemoryProbe) -> None:
        self.fed = 0
        self.asked = 0
        self.wants: Callable[[], float] = lambda: math.inf
        self.needs: Callable[[], int] = probe.consumed

    def use_lane(self, lane: write_lanes.Lane) -> None:
        pass  # nothing is ever learned, so everything comes by ``feed``

    def feed(self, record: records.Record, payload: memoryview) -> None:
        self.fed += 1

    def drained(self, empty_ns: int | None) -> float:
        self.asked += 1
        return self.wants()

    def lost(self, inodes: frozenset[int] | None) -> None:
        raise AssertionError("nothing is lost here")

    def needed_from(self) -> int:
        return self.needs()


@pytest.fixture
def probe() -> Iterator[MemoryProbe]:
    made = MemoryProbe()
    yield made
    made.close()


@contextlib.asynccontextmanager
async def running(probe: MemoryProbe) -> AsyncIterator[tuple[DrainLoop, Volume]]:
    drain, volume = DrainLoop(probe, 0.001, 0.01), Volume(probe)
    drain.add(SLOT, volume)
    task = asyncio.create_task(drain.run())
    try:
        yield drain, volume
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        drain.remove(SLOT)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_a_volume_is_asked_when_records_came_and_not_again(probe: MemoryProbe) -> None:
    async with running(probe) as (_, volume):
        await asyncio.sleep(0.1)
        assert volume.asked == 0
        for _ in range(3):
            probe.put()
        await until(lambda: volume.fed == 3 and probe.released == probe.produced())
        asked = volume.asked
        await asyncio.sleep(0.2)
        assert volume.asked == asked
        probe.put()
        await until(lambda: volume.fed == 4)


async def test_a_volume_is_asked_again_when_it_said_so_though_nothing_comes(probe: MemoryProbe) -> None:
    async with running(probe) as (_, volume):
        answers = iter([0.03, 0.0, 0.01])
        volume.wants = lambda: next(answers, math.inf)
        probe.put()
        await until(lambda: volume.asked >= 4)


async def test_what_somebody_else_read_is_asked_about(probe: MemoryProbe) -> None:
    async with running(probe) as (drain, volume):
        await asyncio.sleep(0.01)
        probe.put()
        drain.catch_up()
        assert (volume.fed, volume.asked) == (1, 0)
        await until(lambda: volume.asked >= 1 and probe.released == probe.produced())


async def test_records_that_are_kept_are_asked_about_until_they_are_let_go(probe: MemoryProbe) -> None:
    async with running(probe) as (_, volume):
        volume.needs = lambda: probe.consumed() if volume.asked >= 5 else 0
        probe.put()
        await until(lambda: probe.released == probe.produced())
        assert (volume.fed, volume.asked) == (1, 5)
