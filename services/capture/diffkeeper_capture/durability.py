"""How safe the log of one volume is: what the spool, the stream and other sites hold, and who waits for it.

Level ``site`` is met for a frame that is fsynced in the spool and acknowledged by the site's stream;
``remote`` is met when besides another site's replicator confirmed it from its own disk. A confirmation
counts only for our own epoch (a later one is another writer's) and only when its hash is the one we sealed,
wherever we still know that.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import structlog

from diffkeeper.domain import clocks, errors, frames, positions
from diffkeeper.domain.receipts import Level, Receipt
from diffkeeper.log.event_log import Confirmation

# Frames whose hashes are remembered for checking confirmations: minutes of a busy volume, 1 MB at most.
HASHES_KEPT = 8192
# How many times at which a level got further are remembered, so that a receipt says since when it is true. Of what is
# older than all of them the oldest is said, which is late, never early.
MILESTONES_KEPT = 4096

_log = structlog.get_logger("durability")


class Durability:
    """Positions only go forward here, except ``stored``, which follows a stream that lost its end."""

    def __init__(
        self, volume: str, site: str, epoch: int, parent: frames.Tip, replicas: Sequence[str] = ()
    ) -> None:
        """``replicas``: other sites that are to confirm, whether or not they were ever heard."""
        self._replicas = tuple(replicas)
        self.spooled = parent.position
        self.stored = parent.position
        self.confirmed: dict[str, positions.Position] = {}
        self.forks = 0
        self._volume = volume
        self.site = site
        self._epoch = epoch
        self._parent = parent
        self._hashes: OrderedDict[positions.Position, bytes] = OrderedDict({parent.position: parent.hash})
        # (position, unix microseconds of its first delta) of frames that are not safe yet, oldest first.
        self._unsafe: deque[tuple[positions.Position, int]] = deque()
        self._waiters: list[tuple[positions.Position, Level, asyncio.Future[None]]] = []
        self._failure: errors.DiffKeeperError | None = None
        # Whether this site may still acknowledge alone: another one may have been given the volume. At level
        # ``remote`` that is for those who confirm to say.
        self.may_acknowledge: Callable[[], bool] = lambda: True
        # (up to where, since when in unix microseconds) the level is met, by rising position.
        self._milestones: dict[Level, deque[tuple[positions.Position, int]]] = {
            level: deque(maxlen=MILESTONES_KEPT) for level in (Level.SITE, Level.REMOTE)
        }

    def sealed(self, frame: frames.Frame) -> None:
        """A frame of ours exists; its hash is what others must confirm."""
        self._hashes[frame.position] = frame.hash
        if len(self._hashes) > HASHES_KEPT:
            self._hashes.popitem(last=False)
        self._unsafe.append((frame.position, clocks.to_micros(frame.header.first)))

    def note_spooled(self, position: positions.Position) -> None:
        if position > self.spooled:
            self.spooled = position
            self._tell()

    def note_stored(self, position: positions.Position) -> None:
        self.stored = position
        self._tell()

    def note_confirmed(self, confirmation: Confirmation) -> None:
        """Take a replicator's word, or leave it when it speaks of a log that is not ours."""
        if confirmation.site == self.site or not self._is_ours(confirmation):
            return
        if confirmation.position > self.confirmed.get(confirmation.site, positions.START):
            self.confirmed[confirmation.site] = confirmation.position
            self._tell()

    def safe(self) -> positions.Position:
        """What would survive the loss of this site, where other sites are to hold replicas; else of this node."""
        if self.confirmed or self._replicas:
            return max(self.remote(), self._parent.position)
        return min(self.spooled, self.stored)

    def by_site(self) -> dict[str, positions.Position]:
        """How far every site is that confirmed or is to: at least the parent of our reign, which it continues."""
        sites = {*self._replicas, *self.confirmed} - {self.site}
        start = self._parent.position
        return {site: max(self.confirmed.get(site, start), start) for site in sites}

    def oldest_unsafe_us(self) -> int | None:
        """When the oldest change that is not safe was made, in unix microseconds."""
        return self.oldest_beyond_us(self.safe())

    def oldest_beyond_us(self, position: positions.Position) -> int | None:
        """When the oldest change beyond a position was made, in unix microseconds."""
        self._forget_confirmed()
        return next((at_us for at, at_us in self._unsafe if at > position), None)

    def _forget_confirmed(self) -> None:
        """What not every site has confirmed stays listed, also while the stream counts as safe because no other site
        is known: the first word of one may speak of less than the stream holds. Too many lose those behind
        the oldest.
        """
        everywhere = min(self.by_site().values(), default=positions.START)
        while self._unsafe and self._unsafe[0][0] <= everywhere:
            self._unsafe.popleft()
        while len(self._unsafe) > HASHES_KEPT:
            del self._unsafe[1]

    def remote(self) -> positions.Position:
        """The furthest position that another site has confirmed."""
        return max(self.confirmed.values(), default=positions.START)

    def meets(self, position: positions.Position, level: Level) -> bool:
        if level is Level.OBSERVE:
            return True
        if self.spooled < position or self.stored < position:
            return False
        return self.may_acknowledge() if level is Level.SITE else self.remote() >= position

    async def reach(self, tip: frames.Tip, level: Level) -> Receipt:
        """Wait for the level; raises what ended the capture."""
        if self._failure is not None:
            raise self._failure
        if not self.meets(tip.position, level):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiter = (tip.position, level, future)
            self._waiters.append(waiter)
            try:
                await future
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self.receipt(tip, level)

    def receipt(self, tip: frames.Tip, level: Level) -> Receipt:
        """What holds of ``tip`` now. The caller knows that the level is met."""
        return Receipt(
            self._volume,
            tip.position,
            tip.hash,
            level,
            self.holders(tip.position),
            self._since_us(tip.position, level),
        )

    def _since_us(self, position: positions.Position, level: Level) -> int:
        since_us = time.time_ns() // 1000
        for upto, at_us in reversed(self._milestones.get(level, ())):
            if upto < position:
                break
            since_us = at_us
        return since_us

    def _note_milestones(self) -> None:
        now_us = time.time_ns() // 1000
        site = min(self.spooled, self.stored)
        for level, upto in ((Level.SITE, site), (Level.REMOTE, min(site, self.remote()))):
            milestones = self._milestones[level]
            while milestones and milestones[-1][0] > upto:
                milestones.pop()  # the stream lost its end
            if upto > positions.START and (not milestones or upto > milestones[-1][0]):
                milestones.append((upto, now_us))

    def holders(self, position: positions.Position) -> tuple[str, ...]:
        held = [f"spool:{self.site}"] if self.spooled >= position else []
        held += [f"stream:{self.site}"] if self.stored >= position else []
        return (*held, *(f"replica:{site}" for site, at in sorted(self.confirmed.items()) if at >= position))

    def fail(self, error: errors.DiffKeeperError) -> None:
        """No receipt will come any more."""
        self._failure = error
        for _, _, future in self._waiters:
            if not future.done():
                future.set_exception(error)
                future.exception()  # a waiter that left already must not be reported as forgotten

    def note_lease(self) -> None:
        """The lease is held again."""
        self._tell()

    def _is_ours(self, confirmation: Confirmation) -> bool:
        position = confirmation.position
        if position.epoch != self._epoch and position != self._parent.position:
            return False
        known = self._hashes.get(position)
        if known is not None and known != confirmation.frame_hash:
            self.forks += 1
            _log.error(
                "a site confirms another history than ours; its word was not taken",
                volume=self._volume,
                site=confirmation.site,
                position=str(position),
            )
            return False
        return True

    def _tell(self) -> None:
        self._forget_confirmed()
        self._note_milestones()
        if not self._waiters:
            return
        still: list[tuple[positions.Position, Level, asyncio.Future[None]]] = []
        for waiter in self._waiters:
            position, level, future = waiter
            if future.done():
                continue
            if self.meets(position, level):
                future.set_result(None)
            else:
                still.append(waiter)
        self._waiters = still
