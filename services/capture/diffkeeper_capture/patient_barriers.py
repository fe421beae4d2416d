"""A gate's view of a capture that may have ended: then nothing is ever answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from diffkeeper.domain import errors, frames
from diffkeeper.domain.receipts import Level, Receipt
from diffkeeper_capture.gate import Barriers, Call

T = TypeVar("T")


class PatientBarriers:
    def __init__(self, barriers: Barriers) -> None:
        self._barriers = barriers

    async def cut_barrier(self, calls: Sequence[Call]) -> frames.Tip:
        try:
            return await self._barriers.cut_barrier(calls)
        except errors.DiffKeeperError:
            return await _for_ever(frames.Tip)

    async def reach(self, tip: frames.Tip, level: Level) -> Receipt:
        try:
            return await self._barriers.reach(tip, level)
        except errors.DiffKeeperError:
            return await _for_ever(Receipt)


async def _for_ever(_kind: type[T]) -> T:
    waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    return await waiting
