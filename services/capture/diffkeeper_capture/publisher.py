"""Gets the frames of one epoch from the spool into the origin's stream: each once, in order, or not at all.

Appends are pipelined, each expecting the sequence its predecessor will take. Whenever one of them fails or
stays unanswered, all under way are awaited, the stream is asked what stands there, and hashes decide: what is
stored counts, what is not is sent again from the spool, and a frame that is not ours means that this writer
is fenced. A stream that lost acknowledged frames is filled again from the spool as long as the spool reaches
back that far. Memory is bounded by the window; whatever does not fit is read from the spool when its turn
comes. A receipt needs the spool's fsync too, which is the agent's part.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from diffkeeper.domain import errors, frames, positions, volumes
from diffkeeper.log import event_log
from diffkeeper_capture import joining
from diffkeeper_capture import spool as spools

# How often an idle publisher looks whether the stream still ends where it should.
IDLE_CHECK_S = 5.0
# Waits between attempts while the broker cannot take a frame: doubled from the first to the last.
RETRY_FIRST_S = 0.05
RETRY_LAST_S = 2.0


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be under way at once, and how much may stand ready in memory; the rest waits in the spool."""

    frames: int = 256
    bytes: int = 4 * 1024 * 1024
    ready_bytes: int = 2 * 1024 * 1024


@dataclass(slots=True)
class Counters:
    published: int = 0  # frames known stored
    published_bytes: int = 0
    resent: int = 0  # frames sent more than once
    checks: int = 0  # how often the stream was asked what stands there
    rollbacks: int = 0  # the stream had lost acknowledged frames
    adopted: int = 0  # frames the stream had and the spool had lost


@dataclass(slots=True)
class _Sent:
    frame: frames.Frame
    acknowledged: asyncio.Future[int]


class Publisher:
    """One for each origin and epoch. ``recover`` first, then ``run`` in a task while ``offer`` is called."""

    def __init__(
        self,
        log: event_log.EventLog,
        origin: volumes.Origin,
        spool: spools.Spool,
        *,
        epoch: int,
        parent: frames.Tip,
        window: Window | None = None,
        on_stored: Callable[[positions.Position], None] | None = None,
    ) -> None:
        self.origin = origin
        self.counters = Counters()
        # Why nothing moves at the moment; None while all is well.
        self.trouble: errors.DiffKeeperError | None = None
        # Set for good when ``run`` has given up.
        self.error: errors.DiffKeeperError | None = None
        self._log = log
        self._spool = spool
        self._reign = joining.Reign(origin, epoch, parent)
        self._window = window or Window()
        self._on_stored = on_stored
        self._recovered = False
        # Invariant: the stream holds ``_tip`` at ``_sequence``; ``_flight`` follows it, then ``_ready``, then
        # the spool.
        self._tip = parent
        self._sequence = 0
        self._flight: deque[_Sent] = deque()
        self._flight_bytes = 0
        self._ready: deque[frames.Frame] = deque()
        self._ready_bytes = 0
        self._sent = self._reign.start
        self._offered = self._reign.start
        self._pause_s = RETRY_FIRST_S
        self._wake = asyncio.Event()
        self._waiters: list[tuple[positions.Position, asyncio.Future[None]]] = []

    @property
    def stored(self) -> positions.Position | None:
        """The last frame of this epoch that the stream is known to hold. Goes back only when
        the stream did.
        """
        return self._tip.position if self._tip.position.epoch == self._reign.epoch else None

    @property
    def behind_bytes(self) -> int:
        """Bytes in the spool, of this epoch, that the stream is not known to hold."""
        return self._spool.bytes_after(self.stored or self._reign.start)

    @property
    def in_flight(self) -> int:
        """Frames sent and not acknowledged. A framer that cuts only while this is small makes larger frames
        under load.
        """
        return len(self._flight)

    async def recover(self) -> frames.Tip:
        """Learn where the stream ends, and return the tip that the next frame must continue.

        Frames that the stream has and the spool lost in a power cut are put back into the spool. Raises
        Fenced when another writer was here, Corrupt when stream and spool cannot be joined, Transient when
        the broker does not answer.
        """
        joined = await joining.join(self._log, self._spool, self._reign)
        self._sequence = joined.sequence
        self.counters.adopted += joined.adopted
        self._resume_after(joined.tip)
        self._recovered = True
        return joining.newest(self._spool, self._reign)

    def offer(self, frame: frames.Frame) -> None:
        """Say that ``frame`` was appended to the spool. Never waits; see ``behind_bytes``."""
        assert self._recovered, "recover() tells what the first frame must continue"
        assert frame.position.epoch == self._reign.epoch, "a publisher serves one epoch"
        if frame.position <= self._offered:
            return  # found in the spool already, when the stream was asked where it ends
        ends_at = self._ready[-1].position if self._ready else self._sent
        if ends_at == self._offered and self._ready_bytes < self._window.ready_bytes:
            self._ready.append(frame)
            self._ready_bytes += len(frame.wire)
        self._offered = frame.position
        self._wake.set()

    async def wait_stored(self, position: positions.Position) -> None:
        """Wait until the stream holds everything up to ``position``; raises what ended the publisher."""
        if self.error is not None:
            raise self.error
        if self.stored is not None and self.stored >= position:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (position, future)
        self._waiters.append(waiter)
        try:
            await future
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def run(self) -> None:
        """Publish until cancelled; raises Fenced, Corrupt or Misconfigured when this writer must stop."""
        try:
            while not self._recovered:
                await self._try_to(self.recover)
            while True:
                await self._step()
        except errors.DiffKeeperError as error:
            self._fail_waiters(error)
            raise
        except Exception:
            # A mistake of ours, which nobody may wait on for ever.
            self._fail_waiters(_ended())
            raise
        finally:
            self._abandon_flight()

    def _fail_waiters(self, error: errors.DiffKeeperError) -> None:
        self.error = error
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(error)

    async def _step(self) -> None:
        """Take what was acknowledged, send what may be sent, then sleep until there is more to do."""
        self._wake.clear()
        failure = self._take_acknowledged()
        if failure is not None:
            await self._resolve(failure)
        await self._fill()
        try:
            async with asyncio.timeout(None if self._flight else IDLE_CHECK_S):
                await self._wake.wait()
        except TimeoutError:
            await self._try_to(self._compare)

    def _take_acknowledged(self) -> errors.DiffKeeperError | None:
        """Advance over acknowledged frames; the first failure, if one stands in front."""
        while self._flight and self._flight[0].acknowledged.done():
            failure = self._flight[0].acknowledged.exception()
            if failure is not None:
                assert isinstance(failure, errors.DiffKeeperError), f"adapters translate errors: {failure!r}"
                return failure
            self._count_stored()
        return None

    def _count_stored(self) -> None:
        """The frame in front of the flight is in the stream."""
        sent = self._flight.popleft()
        _forget(sent.acknowledged)
        frame = sent.frame
        self._flight_bytes -= len(frame.wire)
        self._tip = frames.Tip(frame.position, frame.hash)
        self._sequence += 1
        self._pause_s = RETRY_FIRST_S
        self.trouble = None
        self.counters.published += 1
        self.counters.published_bytes += len(frame.wire)
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        stored = self.stored
        if stored is None:
            return
        if self._waiters:
            for position, future in self._waiters:
                if position <= stored and not future.done():
                    future.set_result(None)
            self._waiters = [waiter for waiter in self._waiters if waiter[0] > stored]
        if self._on_stored is not None:
            self._on_stored(stored)

    async def _fill(self) -> None:
        while self._sent < self._offered and self._has_room():
            if not self._ready:
                await self._load()
            while self._ready and self._has_room():
                frame = self._ready.popleft()
                self._ready_bytes -= len(frame.wire)
                self._send(frame)

    def _has_room(self) -> bool:
        if self.trouble is not None:
            return not self._flight  # one frame is enough to learn whether the broker takes any
        return len(self._flight) < self._window.frames and self._flight_bytes < self._window.bytes

    async def _load(self) -> None:
        """Read on from the spool: what was offered did not fit into memory."""
        places = self._spool.places_after(self._sent, self._window.ready_bytes)
        self._ready.extend(await asyncio.to_thread(self._spool.load, places))
        self._ready_bytes = sum(len(frame.wire) for frame in self._ready)
        parent = self._sent if self._sent.sequence else self._reign.parent.position
        if not self._ready or self._ready[0].header.parent != parent:
            raise self._reign.unjoinable(f"the spool does not hold the frame after {parent}")

    def _send(self, frame: frames.Frame) -> None:
        after = self._flight[-1].frame if self._flight else None
        acknowledged = self._log.append(self.origin, frame, self._sequence + len(self._flight), after)
        acknowledged.add_done_callback(lambda _: self._wake.set())
        self._flight.append(_Sent(frame, acknowledged))
        self._flight_bytes += len(frame.wire)
        self._sent = frame.position

    async def _resolve(self, failure: errors.DiffKeeperError) -> None:
        """A frame failed or its fate is unknown: find out what the stream holds, and have the
        rest sent again.
        """
        if isinstance(failure, errors.Misconfigured):
            raise failure
        await asyncio.wait([sent.acknowledged for sent in self._flight])
        self.trouble = failure
        before = self._tip
        await self._try_to(self._compare)
        self.counters.resent += len(self._flight)
        self._requeue()
        if self._tip == before:
            self.trouble = failure
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, RETRY_LAST_S)

    async def _compare(self) -> None:
        """Ask the stream where it ends; count what is ours, and raise Fenced at the first
        frame that is not.
        """
        self.counters.checks += 1
        last = await self._log.last(self.origin)
        end = last.stream_sequence if last is not None else 0
        if last is None or end < self._sequence:
            if end < self._sequence:
                self._roll_back(frames.open_frame(last.wire) if last is not None else None, end)
            return
        if end == self._sequence:
            found = frames.open_frame(last.wire)
            mine = self._spool.find(found.position)
            if found.hash != self._tip.hash and (self.stored or not self._reign.may_stand_last(found, mine)):
                raise self._reign.fenced(found)
            return
        for sequence in range(self._sequence + 1, end + 1):
            stored = last if sequence == end else await self._log.get(self.origin, sequence)
            if stored is None:
                again = await self._log.last(self.origin)
                if again is not None and again.stream_sequence >= sequence:
                    raise self._reign.unjoinable(f"message {sequence} is missing in the stream")
                await self._compare()  # it went back meanwhile
                break
            self._count_found(frames.open_frame(stored.wire))

    def _count_found(self, found: frames.Frame) -> None:
        """What stands next in the stream is the frame in front of the flight, or a late one of
        ours, or a stranger's.
        """
        if self._flight:
            if found.hash != self._flight[0].frame.hash:
                raise self._reign.fenced(found)
            self._count_stored()
            return
        mine = self._spool.find(found.position)
        if mine is None or mine.hash != found.hash or found.header.parent_hash != self._tip.hash:
            raise self._reign.fenced(found)
        self._tip = frames.Tip(found.position, found.hash)
        self._sequence += 1
        self._tell_waiters()

    def _roll_back(self, last: frames.Frame | None, end: int) -> None:
        """The stream ends before what it had acknowledged: go back to there, and fill it again
        from the spool.
        """
        self.counters.rollbacks += 1
        lost_from, self._sequence = self._sequence, end
        self._abandon_flight()
        if last is not None and last.position.epoch == self._reign.epoch:
            self._resume_after(frames.Tip(last.position, last.hash))
        elif end == self._before_epoch(lost_from):
            self._resume_after(self._reign.parent)
        else:
            raise self._reign.unjoinable("the stream lost frames of earlier epochs too")
        self.trouble = errors.Corrupt(
            f"stream {self.origin.stream} went back from message {lost_from} to {end}; it is filled again",
            reason="stream-rolled-back",
            hint="check the broker's disk: it lost what it had acknowledged",
            had=lost_from,
            has=end,
        )

    def _before_epoch(self, sequence: int) -> int:
        """Where the stream ended before this epoch, when ``_tip`` stood at ``sequence``."""
        return sequence - (self._tip.position.sequence - self._reign.parent.position.sequence)

    def _resume_after(self, tip: frames.Tip) -> None:
        """Have everything behind ``tip`` sent from the spool."""
        self._tip = joining.continued(self._spool, self._reign, tip)
        self._sent = max(tip.position, self._reign.start)
        self._offered = max(self._spool.last or self._sent, self._sent)
        self._ready.clear()
        self._ready_bytes = 0
        self._wake.set()

    def _requeue(self) -> None:
        """What is left of the flight is to be sent again, first."""
        if self._flight:
            self._ready.extendleft(reversed([sent.frame for sent in self._flight]))
            self._ready_bytes += self._flight_bytes
            self._abandon_flight()
        self._sent = self.stored or self._reign.start
        while self._ready and self._ready[0].position <= self._sent:
            self._ready_bytes -= len(self._ready.popleft().wire)

    def _abandon_flight(self) -> None:
        for sent in self._flight:
            _forget(sent.acknowledged)
        self._flight.clear()
        self._flight_bytes = 0

    async def _try_to(self, action: Callable[[], Awaitable[object]]) -> None:
        """Repeat ``action`` until the broker answers it."""
        pause_s = RETRY_FIRST_S
        transient: errors.Transient | None = None
        while True:
            try:
                await action()
                if self.trouble is transient:
                    self.trouble = None
                return
            except errors.Transient as error:
                self.trouble = transient = error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_LAST_S)


def _ended() -> errors.Unreachable:
    return errors.Unreachable(
        "the publisher has ended; its frames are in the spool",
        reason="publisher-ended",
        hint="the next agent publishes them; the agent's log says why this one ended",
    )


def _forget(future: asyncio.Future[int]) -> None:
    """Nobody waits for it any more: no complaint about an exception that was not looked at."""
    if not future.done():
        future.cancel()
    elif not future.cancelled():
        future.exception()
