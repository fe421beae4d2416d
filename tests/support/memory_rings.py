"""A memory file laid out as the kernel lays out its ring, filled by hand."""

from __future__ import annotations

import mmap
import os
import struct

from diffkeeper_capture import records

RING_BYTES = 64 * 1024
PAGE = mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30


class KernelSide:
    """The producer: what the kernel does, with the second mapping of the data copied by hand."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * RING_BYTES)
        self.memory = mmap.mmap(self.fd, 2 * PAGE + 2 * RING_BYTES)
        self.produced = 0

    def consumer(self) -> int:
        return int(struct.unpack_from("=Q", self.memory, 0)[0])

    def put(self, payload: bytes, flags: int = 0, inode: int = 7) -> int:
        """One record; where it begins."""
        return self.put_body(records.HEAD.pack(1, 0, 0, 0, 0, 1, 1, inode, *[0] * 12) + payload, flags)

    def put_body(self, body: bytes, flags: int = 0) -> int:
        begin = self.produced
        self._store(begin, struct.pack("=II", len(body) | flags, 0) + body)
        self.produced += (len(body) + 15) & ~7
        struct.pack_into("=Q", self.memory, PAGE, self.produced)
        return begin

    def finish(self, begin: int, length: int) -> None:
        self._store(begin, struct.pack("=I", length))

    def close(self) -> None:
        self.memory.close()
        os.close(self.fd)

    def _store(self, position: int, data: bytes) -> None:
        at = position % RING_BYTES
        for start in (at, at - RING_BYTES, at + RING_BYTES):
            low, high = max(start, 0), min(start + len(data), 2 * RING_BYTES)
            if low < high:
                base = 2 * PAGE
                self.memory[base + low : base + high] = data[low - start : high - start]
