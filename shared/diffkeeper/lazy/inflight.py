"""The events that a worker has taken and not answered, in memory that outlives it: its successor answers them.

The kernel knows an event by the number of its descriptor in the process that took it. A number that is free again could
be given to another event, so a successor takes the numbers of what it found before it reads any.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

SLOTS = 128
# Descriptors of a worker stay below this.
MOST_FDS = 1024
# descriptor + 1 (0: free), inode, offset, count
_SLOT = struct.Struct("<QQQQ")


class Inflight:
    def __init__(self, folder: Path) -> None:
        fd = os.open(folder / "inflight", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, SLOTS * _SLOT.size)
            self._map = mmap.mmap(fd, SLOTS * _SLOT.size)
        finally:
            os.close(fd)
        self._free = [nth for nth in range(SLOTS) if not self._read(nth)[0]]

    @property
    def busy(self) -> int:
        return SLOTS - len(self._free)

    def left(self) -> Iterator[tuple[int, int, int, int, int]]:
        """(slot, descriptor, inode, offset, count) of what is noted."""
        for nth in range(SLOTS):
            fd, inode, offset, count = self._read(nth)
            if fd:
                yield nth, fd - 1, inode, offset, count

    def note(self, fd: int, inode: int, offset: int, count: int) -> int:
        """Its slot. The descriptor comes last: a slot is noted whole or not at all."""
        nth = self._free.pop()
        _SLOT.pack_into(self._map, nth * _SLOT.size, 0, inode, offset, count)
        struct.pack_into("<Q", self._map, nth * _SLOT.size, fd + 1)
        return nth

    def clear(self, nth: int) -> None:
        struct.pack_into("<Q", self._map, nth * _SLOT.size, 0)
        self._free.append(nth)

    def forget_all(self) -> None:
        """Of a group that is no more."""
        for nth, *_ in list(self.left()):
            self.clear(nth)

    def _read(self, nth: int) -> tuple[int, int, int, int]:
        fd, inode, offset, count = _SLOT.unpack_from(self._map, nth * _SLOT.size)
        return fd, inode, offset, count
