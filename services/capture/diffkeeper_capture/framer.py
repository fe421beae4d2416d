"""From deltas to frames: the last step before the spool, and the only maker of this origin's hash chain.

The framer keeps the columns of one open frame, seals it when its payload is large enough or when it is told to cut, and
chains each sealed frame to the one before. A frame that filled up by itself is packed in a thread while capture goes on, and
joins the chain when it is taken, in order. Times handed to it are CLOCK_MONOTONIC microseconds, as records carry them; it
turns them into hybrid logical stamps. What a delta means is the observer's business; keeping frames safe is the spool's.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

from diffkeeper.domain import clocks, deltas, frames, limits, positions
from diffkeeper_capture import write_lanes

NO_FLAGS = frames.Flag(0)
_AT_US_MAX = (1 << 32) - 1

# Payload counts 29 bytes for each delta, so a frame is full long before it holds too many of them.
assert limits.FRAME_TARGET_BYTES // 29 < limits.FRAME_MAX_DELTAS


# Of zstd. A large frame of a program that runs means many more of them: there the time is worth more than some
# bytes (2.1 instead of 5.7 us for 4 KiB of which half compresses).
LEVEL = 1
HURRIED_LEVEL = -1
HURRIED_FROM_BYTES = 256 * 1024

# Frames packed at once; the next one waits for the oldest of them, so that memory stays bounded.
PACKING_MAX = 2


@dataclass(frozen=True, slots=True)
class _Unchained:
    """A frame that waits for its place in the chain."""

    packed: Future[frames.Packed]
    first: clocks.Stamp
    last: clocks.Stamp
    flags: frames.Flag
    fidelity: frames.Fidelity
    successor: str


class _Compressors:
    """A careful and a hurried one."""

    def __init__(self, level: int) -> None:
        self._careful = frames.Compressor(level)
        self._hurried = frames.Compressor(min(level, HURRIED_LEVEL))

    def choose(self, columns: deltas.Columns, in_base: bool) -> frames.Compressor:
        is_hurried = columns.payload_bytes >= HURRIED_FROM_BYTES and not in_base
        return self._hurried if is_hurried else self._careful


class FrameSink(Protocol):
    """Where the observer and the scanner put what they found, in the order of the log."""

    def add_write(self, file_id: int, offset: int, data: bytes | memoryview, at_us: int) -> None:
        """Bytes at an offset; ``data`` has at most ``limits.DELTA_MAX_DATA_BYTES`` and is copied."""

    def add(self, delta: deltas.Delta) -> None:
        """Any delta; its ``at_us`` is CLOCK_MONOTONIC microseconds, 0 for "when the one before was"."""

    def note_fidelity(self, fidelity: frames.Fidelity) -> None:
        """The open frame is at best this exact."""

    def set_floor(self, fidelity: frames.Fidelity) -> None:
        """Every frame from here on is at best this exact, until told otherwise."""

    def gap(self, cause: str, detail: str, file_id: int = 0, offset: int = 0, length: int = 0) -> None:
        """Say in the log that capture may be incomplete here."""


_MARKS = bytes([deltas.Op.BARRIER])


class Clock(Protocol):
    def unix_us(self) -> int: ...

    def monotonic_us(self) -> int: ...


class SystemClock:
    def unix_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_us(self) -> int:
        return time.monotonic_ns() // 1000


class Framer:
    """Frames of one volume, origin and epoch. ``tip`` is the last frame sealed, or the parent to continue."""

    def __init__(
        self,
        *,
        volume: str,
        origin: str,
        epoch: int,
        tip: frames.Tip,
        clock: Clock,
        last_stamp: clocks.Stamp = 0,
        in_base: bool = False,
        level: int = LEVEL,
        packer: Executor | None = None,
    ) -> None:
        """``packer``: an executor of one thread for full frames; without it everything happens at once."""
        # Of the frames taken; those that are being packed come behind it.
        self.tip = tip
        # Frames carry BASE until one is cut with BASE_END.
        self.in_base = in_base
        self.gaps = 0
        self._volume = volume
        self._origin = origin
        self._epoch = epoch
        self._clock = clock
        self._stamp = last_stamp
        # Where plain writes wait; taken before anything else is looked at or added.
        self._lane: write_lanes.Lane | None = None
        self._compressors = _Compressors(level)
        self._packer = packer
        # Used in the packer's thread only: a compressor is not for two threads.
        self._packers_compressors = _Compressors(level)
        self._unchained: deque[_Unchained] = deque()
        self._floor = self._noted = frames.Fidelity.EXACT
        self._ready: list[frames.Frame] = []
        self._open()

    @property
    def stamp(self) -> clocks.Stamp:
        """The last stamp given."""
        return self._stamp

    @property
    def pending(self) -> int:
        """How many deltas wait in the open frame."""
        self.absorb()
        return len(self._columns.ops)

    @property
    def changes_something(self) -> bool:
        """Whether the open frame holds more than marks of sync calls, which nobody waits for."""
        self.absorb()
        return bool(self._columns.ops.strip(_MARKS))

    @property
    def is_packing(self) -> bool:
        """Whether full frames wait to be taken."""
        return bool(self._unchained)

    @property
    def last_closed(self) -> int:
        """Sequence of the last frame that is closed, whether or not it is packed and taken."""
        self.absorb()
        return self.tip.position.sequence + len(self._unchained)

    @property
    def pending_bytes(self) -> int:
        self.absorb()
        return self._columns.payload_bytes

    def oldest_pending_age(self) -> int:
        """Microseconds since the first delta of the open frame happened; 0 when it has none."""
        self.absorb()
        if not self._columns.ops:
            return 0
        return max(0, self._clock.monotonic_us() - self._first_us)

    def oldest_untaken_age(self) -> int:
        """The same of the oldest frame that nobody has taken yet, the open one included."""
        first = self._ready[0].header.first if self._ready else None
        if first is None and self._unchained:
            first = self._unchained[0].first
        if first is None:
            return self.oldest_pending_age()
        return max(0, self._clock.unix_us() - clocks.to_micros(first))

    def use_lane(self, lane: write_lanes.Lane) -> None:
        """Take plain writes from here too, from now on."""
        lane.on_full = self.absorb
        self._lane = lane
        self._tell_room()

    def absorb(self) -> None:
        """Take what waits in the lane."""
        lane = self._lane
        if lane is None or not lane.count:
            return
        if not self._columns.ops:
            self._begin(lane.first_us)
        lane.pour(self._columns, self._first_us)
        self._grown()

    def _grown(self) -> None:
        if self._columns.payload_bytes >= limits.FRAME_TARGET_BYTES:
            self._full()
        else:
            self._tell_room()

    def _tell_room(self) -> None:
        if self._lane is not None:
            self._lane.make_room(limits.FRAME_TARGET_BYTES - self._columns.payload_bytes)

    def add_write(self, file_id: int, offset: int, data: bytes | memoryview, at_us: int) -> None:
        self.absorb()
        columns = self._columns
        if not columns.ops:
            self._begin(at_us)
        at = at_us - self._first_us
        if not 0 <= at <= _AT_US_MAX:
            at = self._within(at)
        columns.add_write(file_id, offset, data, at)
        self._grown()

    def add(self, delta: deltas.Delta) -> None:
        self.absorb()
        columns = self._columns
        if not columns.ops:
            self._begin(delta.at_us or self._clock.monotonic_us())
        last = columns.at_us[-1] if columns.at_us else 0
        at = self._within(delta.at_us - self._first_us) if delta.at_us else last
        columns.add(delta, at)
        self._grown()

    def note_fidelity(self, fidelity: frames.Fidelity) -> None:
        self.absorb()
        self._noted = max(self._noted, fidelity)

    def set_floor(self, fidelity: frames.Fidelity) -> None:
        self.absorb()
        if self._columns.ops:
            self._noted = max(self._noted, self._floor)
        self._floor = fidelity

    def gap(self, cause: str, detail: str, file_id: int = 0, offset: int = 0, length: int = 0) -> None:
        self.gaps += 1
        self.add(deltas.Delta(deltas.Op.GAP, file_id, offset, length, args=(cause[:64], detail[:1000])))

    def take(self) -> list[frames.Frame]:
        """Frames that filled up by themselves and are packed, in order. The open frame stays open."""
        self.absorb()
        while self._unchained and self._unchained[0].packed.done():
            self._chain()
        taken, self._ready = self._ready, []
        return taken

    def close(self) -> None:
        """Close the open frame as if it were full: it is packed beside the capture, and taken later."""
        self.absorb()
        if self._columns.ops:
            self._full()

    def cut(self, flags: frames.Flag = NO_FLAGS, successor: str = "") -> list[frames.Frame]:
        """Seal what is pending; every frame not yet taken, in order, the last of them with ``flags``.

        With nothing pending that changes something and nothing to take, a BARRIER alone makes no frame: ``tip``
        already covers it. (A program that fsyncs a thousand clean files, as PostgreSQL does when it recovers, must
        not wait for a thousand receipts.) Other flags make an empty frame that carries them.
        """
        self.absorb()
        waiting = bool(self._ready) or bool(self._unchained)
        pending = self.changes_something if flags == frames.Flag.BARRIER else bool(self._columns.ops)
        if pending or flags & ~frames.Flag.BARRIER or (flags and waiting):
            packed: Future[frames.Packed] = Future()
            packed.set_result(self._pack_now())
            self._close(packed, flags, successor)
        while self._unchained:
            self._chain()
        return self.take()

    def _open(self) -> None:
        self._columns = deltas.Columns()
        self._noted = frames.Fidelity.EXACT
        self._first_us = 0
        self._first_stamp: clocks.Stamp = 0
        self._tell_room()

    def _begin(self, at_us: int) -> None:
        """The first delta of a frame: its time on the wall clock is that long ago by the monotonic one."""
        ago_us = max(0, self._clock.monotonic_us() - at_us)
        self._first_us = at_us
        self._first_stamp = self._stamp = clocks.tick(self._stamp, self._clock.unix_us() - ago_us)

    def _within(self, at: int) -> int:
        """Records of several processors may stand a little out of order in time; the log's order is that of the ring."""
        return min(max(at, 0), _AT_US_MAX)

    def _full(self) -> None:
        """Close the open frame because of its size."""
        packed: Future[frames.Packed]
        if self._packer is not None:
            compressor = self._packers_compressors.choose(self._columns, self.in_base)
            packed = self._packer.submit(frames.pack, self._columns, compressor)
        else:
            packed = Future()
            packed.set_result(self._pack_now())
        self._close(packed, NO_FLAGS, "")
        if len(self._unchained) > PACKING_MAX:
            self._chain()

    def _pack_now(self) -> frames.Packed:
        return frames.pack(self._columns, self._compressors.choose(self._columns, self.in_base))

    def _close(self, packed: Future[frames.Packed], flags: frames.Flag, successor: str) -> None:
        columns = self._columns
        if not columns.ops:
            self._begin(self._clock.monotonic_us())
        if deltas.Op.GAP in columns.ops:
            flags |= frames.Flag.GAP
        if self.in_base:
            flags |= frames.Flag.BASE
        latest_us = clocks.to_micros(self._first_stamp) + (max(columns.at_us) if columns.at_us else 0)
        self._stamp = max(self._first_stamp, clocks.from_micros(latest_us))
        fidelity = max(self._noted, self._floor)
        self._unchained.append(_Unchained(packed, self._first_stamp, self._stamp, flags, fidelity, successor))
        if flags & frames.Flag.BASE_END:
            self.in_base = False
        self._open()

    def _chain(self) -> None:
        """Give the oldest closed frame its place; waits for its packing."""
        closed = self._unchained.popleft()
        frame = frames.seal(
            closed.packed.result(),
            volume=self._volume,
            origin=self._origin,
            position=positions.Position(self._epoch, self.tip.position.sequence + 1),
            parent=self.tip.position,
            parent_hash=self.tip.hash,
            first=closed.first,
            last=closed.last,
            flags=closed.flags,
            fidelity=closed.fidelity,
            successor=closed.successor,
        )
        self.tip = frames.Tip(frame.position, frame.hash)
        self._ready.append(frame)
