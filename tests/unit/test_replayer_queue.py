"""A replica that applies more slowly than its journal grows: the queue between them is bounded and never has a hole."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from tests.support.followers import Leader, applied, follow, journalled, link, proven, sites, until

from diffkeeper.domain.deltas import write
from diffkeeper_replicator import replayer as replayers


async def test_frames_that_find_no_room_in_the_queue_are_read_back_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three frames a run, room for four; the applying thread stands still twice, so that the queue is full, then has room
    again while it still holds frames from before those that found none.
    """
    monkeypatch.setattr(replayers, "RUN_MAX_BYTES", 2500)
    monkeypatch.setattr(replayers, "QUEUE_MAX_BYTES", 3000)
    gates = [threading.Event(), threading.Event()]
    async with sites(tmp_path, "east", "west") as (east, west):
        leader = Leader(east.log)
        await west.replica.put_role(follow(link("east", 1)))
        await applied(west, await leader.base())
        replayer = west.replica.replayer
        assert replayer is not None
        stopped = [asyncio.ensure_future(replayer.in_thread(gates[0].wait))]
        try:
            await journalled(west, await leader.publish(write(2, 0, bytes(900))))
            await until(lambda: replayer.oldest_stamp and not replayer.pending_bytes)  # taken, and stopped
            for number in range(1, 8):
                last = await leader.publish(write(2, number, bytes([number]) * 900))
            await journalled(west, last)
            # Behind the run that was taken already.
            stopped.append(asyncio.ensure_future(replayer.in_thread(gates[1].wait)))
            await asyncio.sleep(0)
            gates[0].set()
            await until(lambda: replayer.pending_bytes < 1500, lambda: replayer.pending_bytes)
            for number in range(8, 12):
                last = await leader.publish(write(2, number, bytes([number]) * 900))
            await journalled(west, last)
        finally:
            for gate in gates:
                gate.set()
            await asyncio.gather(*stopped)
        await applied(west, last)
        assert west.replica.status()["state"] == "following"
        await proven(west)
