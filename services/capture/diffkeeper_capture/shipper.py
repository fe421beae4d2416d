"""From sealed frames to safety: into the spool, on to the publisher, and out of the spool when others have
them.

Frames are kept on disk, not in memory, while the stream is away. Only when the spool itself takes no more do
frames wait here, and ``is_choked`` then asks for capture to pause: the ring overflows, which is a gap that
is seen, instead of memory growing until the agent is killed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import structlog

from diffkeeper.domain import errors, frames, positions
from diffkeeper.log.event_log import EventLog
from diffkeeper_capture.durability import Durability
from diffkeeper_capture.publisher import Publisher
from diffkeeper_capture.resume_marks import Marks
from diffkeeper_capture.spool import Spool

HELD_MAX_BYTES = 32 * 1024 * 1024
RETRY_S = 0.25
# Without a barrier the spool is synced this often; only the loss at level observe depends on it.
IDLE_SYNC_S = 1.0
# Where no other site is to hold a replica there is no second holder to wait for but the spool itself: it keeps this
# share of its room, then leaves what is older to the stream alone, and says so (``is_held_once``).
ALONE_SHARE = 0.5

_log = structlog.get_logger("shipper")


class Shipper:
    def __init__(self, spool: Spool, publisher: Publisher, durability: Durability) -> None:
        # Set by the owner where a successor may go on from marks.
        self.marks: Marks | None = None
        self.trouble: errors.Transient | None = None
        # Up to here the spool's frames are not needed for a restart: the saved tree stands there.
        self.releasable = positions.START
        # Some frames of this volume have no holder but the site's stream.
        self.is_held_once = False
        self._spool = spool
        self._publisher = publisher
        self._durability = durability
        self._held: deque[frames.Frame] = deque()
        self._held_bytes = 0
        # In the spool, and not offered before the mark behind them is written.
        self._unoffered: list[frames.Frame] = []
        self._wants_sync = asyncio.Event()
        spool.on_synced = self._note_synced

    @property
    def is_choked(self) -> bool:
        return self._held_bytes > HELD_MAX_BYTES

    def ship(self, sealed: Sequence[frames.Frame]) -> None:
        """Take frames, in order. Never waits."""
        for frame in sealed:
            self._durability.sealed(frame)
            self._held.append(frame)
            self._held_bytes += len(frame.wire)
        self._take_held()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits here."""
        return not self._held and not self._unoffered

    def sync_soon(self) -> None:
        """A barrier was shipped: make the spool durable now, beside the publishing."""
        self._spool.sync_soon()

    def _note_synced(self) -> None:
        if self._spool.durable is not None:
            self._durability.note_spooled(self._spool.durable)
        if self._spool.is_poisoned:
            self._wants_sync.set()  # ``run`` finds the reason

    async def run(self) -> None:
        """Sync, retry what the spool refused, release what others hold; until cancelled. Raises Corrupt."""
        while True:
            self._take_held()
            self._wants_sync.clear()
            await self._spool.sync()
            self._note_synced()
            self._release()
            try:
                async with asyncio.timeout(RETRY_S if self._held else IDLE_SYNC_S):
                    await self._wants_sync.wait()
            except TimeoutError:
                continue

    async def follow_confirmations(self, log: EventLog) -> None:
        """Hear what replicators say of our frames; until cancelled."""
        async for confirmation in log.confirmations(self._publisher.origin):
            self._durability.note_confirmed(confirmation)

    def _take_held(self) -> None:
        """A group at a time: into the spool, the mark, to the publisher, without letting others in between, so
        that the publisher does not find in the spool what was not offered.
        """
        if self.marks is None or not self.marks.is_on:
            self._offer()
        while self._held and self._group_is_whole():
            frame = self._held[0]
            if not self._append(frame):
                return
            self._held_bytes -= len(self._held.popleft().wire)
            self._unoffered.append(frame)
            if self.marks is None or not self.marks.is_on:
                self._offer()
            elif frame.position.sequence == self.marks.group_end():
                self.marks.group_is_kept(frames.Tip(frame.position, frame.hash))
                self._offer()

    def _group_is_whole(self) -> bool:
        if self.marks is None or not self.marks.is_on:
            return True
        end = self.marks.group_end()
        return end is not None and self._held[-1].position.sequence >= end

    def _append(self, frame: frames.Frame) -> bool:
        try:
            self._spool.append(frame)
        except errors.Transient as error:
            if self.trouble is None or self.trouble.reason != error.reason:
                _log.error(error.message, hint=error.hint, reason=error.reason)
            self.trouble = error
            return False
        self.trouble = None
        return True

    def _offer(self) -> None:
        for frame in self._unoffered:
            self._publisher.offer(frame)
        self._unoffered.clear()

    def _release(self) -> None:
        """Drop from the spool what two others hold: the stream and a replica at another site."""
        safe = min(self._durability.stored, self._durability.remote())
        alone = not self._durability.by_site()
        if alone and self._spool.bytes_kept > ALONE_SHARE * self._spool.max_bytes:
            safe = self._durability.stored
            if not self.is_held_once:
                _log.warning(
                    "no other site holds this volume: its older frames are in the site's stream alone"
                )
            self.is_held_once = True
        safe = min(safe, self.releasable)
        if safe > positions.START:
            self._spool.release(safe)
