"""Empties the probe's ring into the volumes: one ring, many volumes, one loop.

The ring is looked at in intervals instead of at each record: the first record of a burst wakes this loop, which lets
others gather for an interval (``pace``) before it reads them, and reads nothing when nothing came.

Records leave the ring when what every volume made of them is kept (``needed_from``): a successor of this process
reads the rest again. One that takes over joins its volumes one by one, each from where the predecessor left it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from diffkeeper_capture import pace, probes, records, write_lanes

# Records handled before other work of the loop gets its turn.
RECORDS_A_TURN = 2048
# While records are kept for a volume that does not come, the ring counts as readable all the time.
HELD_PAUSE_S = 0.02

_log = structlog.get_logger("drain")


class Fed(Protocol):
    """A volume, as the loop knows it."""

    def use_lane(self, lane: write_lanes.Lane) -> None:
        """Plain writes come through here, and not to ``feed``, once they were learned."""

    def feed(self, record: records.Record, payload: memoryview) -> None: ...

    def drained(self, empty_ns: int | None) -> float:
        """A turn has ended (``empty_ns``: when the ring was empty): ship what is due. In how many seconds there is more to
        do though no record comes; infinite where there is nothing.
        """

    def lost(self, inodes: frozenset[int] | None) -> None:
        """Records of these files were lost; None: of nobody knows which."""

    def needed_from(self) -> int:
        """The ring position from which on a successor would need records of this volume."""

    @property
    def is_choked(self) -> bool:
        """Nothing more can be taken now."""

    @property
    def is_behind(self) -> bool:
        """The stream does not keep up with what is shipped."""


class DrainLoop:
    def __init__(self, probe: probes.RecordProbe, linger_s: float, linger_most_s: float) -> None:
        self.records = 0
        self._probe = probe
        self._volumes: dict[int, Fed] = {}
        # Slots that a predecessor watched, and where each is to go on.
        self._behind: dict[int, int] = {}
        self._lanes = write_lanes.Lanes.load()
        self.pace = pace.Pace(linger_s, linger_most_s, time.monotonic())
        self._lost = probe.lost()
        # When all that had returned before was delivered, by the monotonic clock.
        self._emptied_ns = time.monotonic_ns()
        self._readable = asyncio.Event()
        # When volumes are asked again though no record came, by the monotonic clock.
        self._look_at = math.inf
        # Called after each turn, when what is kept was let go.
        self.after_turn: Callable[[], None] = lambda: None

    def add(self, slot: int, volume: Fed) -> None:
        self._volumes[slot] = volume
        if self._lanes is not None:
            volume.use_lane(self._lanes.add(slot))

    def remove(self, slot: int) -> None:
        self._volumes.pop(slot, None)
        self._behind.pop(slot, None)
        if self._lanes is not None:
            self._lanes.remove(slot)

    def keep_for(self, slot: int, position: int) -> None:
        """Let no record go from ``position`` on, until ``join`` or ``remove``."""
        self._behind[slot] = max(position, self._probe.released)

    async def join(self, slot: int, volume: Fed, lost_before: int) -> None:
        """Give a volume what came since its predecessor, then go on with it as with the others."""

        def handle(record: records.Record, payload: memoryview) -> None:
            if record.volume in (slot, records.NO_VOLUME):
                volume.feed(record, payload)

        while self._behind[slot] < self._probe.consumed():
            if not volume.is_choked:
                self._behind[slot] = self._probe.replay(handle, self._behind[slot], RECORDS_A_TURN)
                volume.drained(None)
            await asyncio.sleep(0 if not volume.is_choked else HELD_PAUSE_S)
        del self._behind[slot]
        self.add(slot, volume)
        lost = self._probe.lost()
        if lost.records != lost_before:
            inodes = frozenset(inode for of, inode in lost.files if of == slot)
            volume.lost(None if lost.everywhere else inodes)

    @property
    def identity(self) -> str:
        return self._probe.identity

    def position_of(self, slot: int) -> int:
        """All records before it have been delivered to the volume in ``slot``."""
        return self._behind.get(slot, self._probe.consumed())

    @property
    def produced(self) -> int:
        return self._probe.produced()

    @property
    def held_bytes(self) -> int:
        """Of the ring, what the kernel cannot use: not read yet, or read and not kept yet."""
        return self._probe.produced() - self._probe.released

    @property
    def unread_age_us(self) -> int:
        """How long ago the oldest call may have returned that nobody has looked at; 0 when there is none."""
        if self._probe.produced() == self._probe.consumed():
            return 0
        return (time.monotonic_ns() - self._emptied_ns) // 1000

    @property
    def lost_records(self) -> int:
        return self._lost.records

    def catch_up(self) -> int:
        """Deliver everything that had returned before this call; the monotonic ns of which that is true."""
        began_ns = time.monotonic_ns()
        delivered = self._probe.drain(self._handle, upto=self._probe.produced(), lanes=self._lanes)
        self._emptied_ns = began_ns
        self._look_for_lost(surely=True)
        if delivered:
            self.records += delivered
            # Whoever asked for them mostly ships them too; what he leaves open is looked for a little later.
            self._look_at = min(self._look_at, time.monotonic() + HELD_PAUSE_S)
            self._readable.set()
        return began_ns

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self.held_bytes and self._look_at == math.inf:
                await self._until_readable()
            await asyncio.sleep(self.pace.look_s)
            if self._probe.produced() != self._probe.consumed() or time.monotonic() >= self._look_at:
                await self._turns()

    async def _until_readable(self) -> None:
        loop, descriptor = asyncio.get_running_loop(), self._probe.fileno()
        self._readable.clear()
        loop.add_reader(descriptor, self._readable.set)
        try:
            await self._readable.wait()
        finally:
            loop.remove_reader(descriptor)

    async def _turns(self) -> None:
        """All that waits, in turns."""
        empty_ns: int | None = None
        while not self._is_choked():
            began_ns = time.monotonic_ns()
            delivered = self._probe.drain(self._handle, most=RECORDS_A_TURN, lanes=self._lanes)
            self._look_for_lost()
            self.records += delivered
            if delivered < RECORDS_A_TURN:
                empty_ns = self._emptied_ns = began_ns
                break
            self._tell_drained(None)
            self._release()
            await asyncio.sleep(0)
        self._look_at = math.inf
        wait_s = self._tell_drained(empty_ns)
        self._release()
        self._adapt()
        if self.held_bytes or self._is_choked():
            wait_s = min(wait_s, HELD_PAUSE_S)
        self._look_at = min(self._look_at, time.monotonic() + wait_s)

    def _handle(self, record: records.Record, payload: memoryview) -> None:
        slot = record.volume
        if slot == records.NO_VOLUME:
            for volume in self._volumes.values():
                volume.feed(record, payload)
            return
        fed = self._volumes.get(slot)
        if fed is not None:
            fed.feed(record, payload)

    def _release(self) -> None:
        needed = [volume.needed_from() for volume in self._volumes.values()]
        self._probe.release(min([self._probe.consumed(), *needed, *self._behind.values()]))
        self.after_turn()

    def _tell_drained(self, empty_ns: int | None) -> float:
        return min([volume.drained(empty_ns) for volume in list(self._volumes.values())], default=math.inf)

    def _look_for_lost(self, *, surely: bool = False) -> None:
        lost = self._probe.lost(surely=surely)
        if lost.records == self._lost.records:
            return
        before, self._lost = self._lost, lost
        self._look_at = time.monotonic()
        self._readable.set()
        _log.error(
            "the ring had no room for records",
            lost=lost.records - before.records,
            left_out=lost.left_out,
            held_bytes=self.held_bytes,
        )
        fresh = lost.files - before.files
        for slot, volume in list(self._volumes.items()):
            inodes = frozenset(inode for of, inode in lost.files if of == slot)
            if lost.everywhere or not fresh:
                volume.lost(None)
            elif inodes:
                volume.lost(inodes)

    def _is_choked(self) -> bool:
        return any(volume.is_choked for volume in self._volumes.values())

    def _adapt(self) -> None:
        is_behind = any(volume.is_behind for volume in self._volumes.values())
        self.pace.adapt(time.monotonic(), self.records, self._probe.consumed(), is_behind=is_behind)
