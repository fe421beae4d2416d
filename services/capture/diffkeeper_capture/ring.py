"""Reads the kernel's ring of records by memory mapping: no call into libbpf, no copy; plain writes go into the lanes
of their volumes (``write_lanes``), every other record is one call of the handler.

The layout is that of ``BPF_MAP_TYPE_RINGBUF``: a page with our position, a page with the kernel's, then the
data. The kernel offers the data twice in a row, so that a record which wraps around is contiguous; only the
first is mapped here, because mapped pages count as ours twice, and the one record in a round that wraps is
put together. Each record has eight bytes before it: its length with two flags, and a page offset that only
the kernel uses. Positions count bytes since the start and never wrap.

A reader that *holds* tells the kernel of no progress by itself: records stay in the ring until ``release``, for a
successor to read them again if this process dies before it has kept what it made of them.
"""

from __future__ import annotations

import ctypes
import os
import time

from diffkeeper.domain import errors
from diffkeeper_capture import probes, records, ring_memory, write_lanes

_BUSY = 1 << 31  # room is taken, the record is still being written
_DISCARDED = 1 << 30
_LENGTH = _DISCARDED - 1
_RING_HEAD_BYTES = 8
# Our position is told to the kernel in strides: each store moves a cache line that every writer of the
# machine reads.
_STRIDE_MAX_BYTES = 256 * 1024
# Writing a record takes the kernel microseconds; only a stopped virtual processor makes it long.
_BUSY_LIMIT_S = 5.0
_ALL = 1 << 62


class RingReader:
    """The only reader of a ring. Not for two threads at once."""

    def __init__(self, fd: int, ring_bytes: int, *, holds: bool = False) -> None:
        self._fd = fd
        self._holds = holds
        self._mask = ring_bytes - 1
        self._stride = min(_STRIDE_MAX_BYTES, ring_bytes // 8)
        self._ours = ring_memory.Mapping(fd, 0, ring_memory.PAGE, writable=True)
        self._theirs = ring_memory.Mapping(
            fd, ring_memory.PAGE, ring_memory.PAGE + ring_bytes, writable=False
        )
        # Native casts: loads and stores of one machine word, never seen half done by the other side.
        self._consumer = self._ours.view.cast("Q")
        self._producer = self._theirs.view[:8].cast("Q")
        self._data = self._theirs.view[ring_memory.PAGE :]
        self._words = self._data.cast("I")
        self._position = self._consumer[0]
        self._untold = ctypes.c_uint64(0)
        self._quick = write_lanes.Ring(
            data=self._theirs.address + ring_memory.PAGE,
            bytes=ring_bytes,
            # Where the compiled loop tells its progress; one that holds tells nobody.
            consumer=ctypes.addressof(self._untold) if holds else self._ours.address,
            stride=self._stride,
        )

    def fileno(self) -> int:
        """The ring itself: epoll calls it readable while records wait."""
        return self._fd

    def produced(self) -> int:
        return self._producer[0]

    def consumed(self) -> int:
        return self._position

    @property
    def released(self) -> int:
        """Where the room that the kernel may use again ends, and where a successor begins to read."""
        return self._consumer[0]

    def release(self, position: int) -> None:
        """Give the kernel the room before ``position``; going back changes nothing."""
        if self._consumer[0] < position <= self._position:
            self._consumer[0] = position

    def replay(self, handle: probes.RecordHandler, start: int, most: int) -> int:
        """Deliver records again from ``start``, up to ``most`` of them or to where reading is; where that ended."""
        assert self._consumer[0] <= start <= self._position, "what was released is gone"
        position, self._position = self._position, start
        try:
            self._deliver(handle, position, -1, most)
            return self._position
        finally:
            self._position = position

    def drain(
        self,
        handle: probes.RecordHandler,
        upto: int | None = None,
        most: int = 65_536,
        lanes: write_lanes.Lanes | None = None,
    ) -> int:
        """See ``RecordProbe.drain``. A record whose handler raises is delivered again."""
        delivered = 0
        target = -1 if upto is None else upto
        while True:
            end = self._producer[0]
            if lanes is None:
                delivered += self._deliver(handle, end, target, most - delivered)
            else:
                delivered += self._deliver_quickly(handle, end, target, most - delivered, lanes)
            if self._position >= target:
                return delivered
            # Below the target the next record is still being written.
            self._await_next()

    def _deliver_quickly(
        self, handle: probes.RecordHandler, end: int, target: int, most: int, lanes: write_lanes.Lanes
    ) -> int:
        """As ``_deliver``: runs of plain writes into the lanes, what stands between them to the handler."""
        delivered = 0
        quick = self._quick
        while True:
            # Up to the target nothing is counted: all of it has to come.
            must = self._position < target
            quick.position = quick.told = self._position
            taken, goes_on = lanes.take(
                quick, min(end, target) if must else end, _ALL if must else max(0, most - delivered)
            )
            self._position = quick.position
            delivered += taken
            if goes_on:
                delivered += self._deliver(handle, end, self._position + 1, 1)
            elif not must or self._position < target:
                return delivered

    def _deliver(self, handle: probes.RecordHandler, end: int, target: int, most: int) -> int:
        """Records up to ``end``, or to the first unfinished one, or ``most`` when the target is reached."""
        data, words, consumer, mask = self._data, self._words, self._consumer, self._mask
        unpack, new, record_class = records.HEAD.unpack_from, tuple.__new__, records.Record
        payload_at = _RING_HEAD_BYTES + records.HEAD_BYTES
        ring_bytes = mask + 1
        position, stride = self._position, self._stride
        told = position + stride if not self._holds else 1 << 64
        delivered = 0
        try:
            while position < end:
                at = position & mask
                length = words[at >> 2]
                if length >= _DISCARDED:
                    if length & _BUSY:
                        break
                    length &= _LENGTH
                else:
                    if delivered >= most and position >= target:
                        break
                    begin = at + _RING_HEAD_BYTES
                    if begin + length <= ring_bytes:
                        handle(new(record_class, unpack(data, begin)), data[at + payload_at : begin + length])
                    else:
                        whole = self._put_together(begin, length)
                        handle(new(record_class, unpack(whole)), whole[records.HEAD_BYTES :])
                    delivered += 1
                position += (length + 15) & ~7
                if position >= told:
                    self._position = consumer[0] = position
                    told = position + stride
        finally:
            self._position = position
            if not self._holds:
                consumer[0] = position
        return delivered

    def _put_together(self, begin: int, length: int) -> memoryview:
        """A record that goes on at the ring's first byte."""
        return memoryview(bytes(self._data[begin:]) + bytes(self._data[: begin + length - self._mask - 1]))

    def _await_next(self) -> None:
        """Until the record at our position is finished; the kernel is writing it on another processor."""
        deadline = time.monotonic() + _BUSY_LIMIT_S
        at = (self._position & self._mask) >> 2
        while self._position >= self._producer[0] or self._words[at] & _BUSY:
            if time.monotonic() > deadline:
                raise errors.TimedOut(
                    f"a record of the probe stayed unfinished for {_BUSY_LIMIT_S:.0f} s; nothing was skipped",
                    reason="ring-stuck",
                    hint="a virtual processor may be stopped; the next drain goes on at the same record",
                )
            os.sched_yield()

    def close(self) -> None:
        self._quick = write_lanes.Ring()
        for view in (self._words, self._data, self._producer, self._consumer):
            view.release()
        self._theirs.close()
        self._ours.close()
