"""The gate's promises, with barriers that a test completes by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from diffkeeper.domain import frames, positions
from diffkeeper.domain.receipts import Level, Receipt
from diffkeeper.domain.volumes import UnmetPolicy
from diffkeeper_capture.gate import Call, Gate


class ManualBarriers:
    """Each barrier gets the next position; ``safe`` says up to where each level is met."""

    def __init__(self) -> None:
        self.cut: list[list[int]] = []
        self.safe = {Level.SITE: 0, Level.REMOTE: 0}
        self.changed = asyncio.Condition()
        self.stuck = False

    async def cut_barrier(self, calls: Sequence[Call]) -> frames.Tip:
        if self.stuck:
            await asyncio.Event().wait()
        self.cut.append([call.ident for call in calls])
        return frames.Tip(positions.Position(1, len(self.cut)), frames.NO_HASH)

    async def reach(self, tip: frames.Tip, level: Level) -> Receipt:
        async with self.changed:
            await self.changed.wait_for(lambda: self.safe[level] >= tip.position.sequence)
        return Receipt("v", tip.position, tip.hash, level, (), 0)

    async def meet(self, level: Level, sequence: int) -> None:
        async with self.changed:
            self.safe[level] = sequence
            self.changed.notify_all()


class Program:
    def __init__(self) -> None:
        self.gone_on: list[int] = []

    def let_go(self, idents: Sequence[int]) -> None:
        self.gone_on.extend(idents)


@asynccontextmanager
async def running(gate: Gate) -> AsyncIterator[None]:
    task = asyncio.create_task(gate.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_calls_that_wait_share_one_barrier_and_later_ones_the_next() -> None:
    barriers, program = ManualBarriers(), Program()
    gate = Gate("v", barriers, level=Level.SITE)
    async with running(gate):
        for ident in (1, 2):
            gate.arrive(program, ident, 10, "fsync")
        await settle()
        for ident in (3, 4, 5):
            gate.arrive(program, ident, 10, "fsync")
        await settle()
        assert barriers.cut == [[1, 2]]
        assert program.gone_on == []
        await barriers.meet(Level.SITE, 1)
        await settle()
        assert program.gone_on == [1, 2]
        assert barriers.cut == [[1, 2], [3, 4, 5]]
        await barriers.meet(Level.SITE, 2)
        await settle()
        assert sorted(program.gone_on) == [1, 2, 3, 4, 5]
        assert (gate.total, gate.batches, gate.waiting()) == (5, 2, [])


async def test_level_remote_is_not_satisfied_by_the_site() -> None:
    barriers, program = ManualBarriers(), Program()
    gate = Gate("v", barriers, level=Level.REMOTE)
    async with running(gate):
        gate.arrive(program, 1, 77, "fdatasync")
        await barriers.meet(Level.SITE, 9)
        await settle()
        (waits,) = gate.waiting()
        assert (waits["call"], waits["pid"], waits["level"]) == ("fdatasync", 77, "remote")
        assert program.gone_on == []
        await barriers.meet(Level.REMOTE, 1)
        await settle()
        assert program.gone_on == [1]


async def test_level_observe_lets_go_at_once_and_asks_nothing() -> None:
    barriers, program = ManualBarriers(), Program()
    gate = Gate("v", barriers, level=Level.OBSERVE)
    gate.arrive(program, 1, 10, "fsync")
    assert (program.gone_on, barriers.cut, gate.total) == ([1], [], 1)


async def test_policy_block_waits_however_long_it_takes() -> None:
    barriers, program = ManualBarriers(), Program()
    gate = Gate("v", barriers, level=Level.SITE, policy=UnmetPolicy.BLOCK, degrade_after_s=0.001)
    async with running(gate):
        gate.arrive(program, 1, 10, "fsync")
        await asyncio.sleep(0.05)
        assert (program.gone_on, gate.effective) == ([], Level.SITE)


async def test_policy_degrade_lowers_level_by_level_and_restores_when_it_is_met_in_time() -> None:
    barriers, program = ManualBarriers(), Program()
    gate = Gate("v", barriers, level=Level.REMOTE, policy=UnmetPolicy.DEGRADE, degrade_after_s=0.02)
    async with running(gate):
        await barriers.meet(Level.SITE, 1_000)
        gate.arrive(program, 1, 10, "fsync")
        await until(lambda: program.gone_on == [1])
        assert gate.effective == Level.SITE
        await barriers.meet(Level.REMOTE, 1_000)
        await until(lambda: gate.effective == Level.REMOTE)


async def test_policy_degrade_lets_go_when_not_even_a_frame_can_be_cut() -> None:
    barriers, program = ManualBarriers(), Program()
    barriers.stuck = True
    gate = Gate("v", barriers, level=Level.SITE, policy=UnmetPolicy.DEGRADE, degrade_after_s=0.02)
    async with running(gate):
        gate.arrive(program, 1, 10, "fsync")
        await until(lambda: program.gone_on == [1])
        assert gate.effective is Level.OBSERVE


async def test_calls_of_a_forgotten_source_are_not_let_go_by_its_barrier() -> None:
    barriers, gone, stays = ManualBarriers(), Program(), Program()
    gate = Gate("v", barriers, level=Level.SITE)
    async with running(gate):
        gate.arrive(gone, 1, 10, "fsync")
        gate.arrive(stays, 1, 20, "fsync")
        await settle()
        gate.forget(gone)
        await barriers.meet(Level.SITE, 1)
        await settle()
        assert (gone.gone_on, stays.gone_on) == ([], [1])
