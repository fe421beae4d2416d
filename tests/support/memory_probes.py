"""A record probe on a ring in memory, filled by hand; it reads as the exact probe reads."""

from __future__ import annotations

import os

from tests.support.memory_rings import RING_BYTES, KernelSide

from diffkeeper_capture import probes, ring, write_lanes


class MemoryProbe:
    """A ``RecordProbe`` that keeps what it has read until it is released, as with a ring that outlives its reader."""

    identity = "memory"

    def __init__(self) -> None:
        self.kernel = KernelSide()
        self._ring = ring.RingReader(self.kernel.fd, RING_BYTES, holds=True)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, payload: bytes = b"x") -> None:
        self.kernel.put(payload)
        os.eventfd_write(self._bell, 1)

    def watch(self, slot: int, root_fd: int) -> list[int]:
        return []

    def unwatch(self, slot: int) -> None:
        pass

    def ignore(self, tgid: int) -> None:
        pass

    def fileno(self) -> int:
        return self._bell

    def produced(self) -> int:
        return self._ring.produced()

    def drain(
        self,
        handle: probes.RecordHandler,
        upto: int | None = None,
        most: int = 65_536,
        lanes: write_lanes.Lanes | None = None,
    ) -> int:
        return self._ring.drain(handle, upto, most, lanes)

    def consumed(self) -> int:
        return self._ring.consumed()

    @property
    def released(self) -> int:
        return self._ring.released

    def release(self, position: int) -> None:
        self._ring.release(position)
        if self._ring.released == self._ring.produced():
            try:
                os.eventfd_read(self._bell)
            except BlockingIOError:
                pass  # it was quiet already

    def replay(self, handle: probes.RecordHandler, start: int, most: int) -> int:
        return self._ring.replay(handle, start, most)

    def lost(self, *, surely: bool = True) -> probes.Lost:
        return probes.Lost(records=0, files=frozenset(), everywhere=False)

    def close(self) -> None:
        self._ring.close()
        self.kernel.close()
        os.close(self._bell)
