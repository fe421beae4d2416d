"""The address space of a state's bytes: a spill file for what deltas brought, chunks for what a checkpoint
has, and digests of what was read.

Addresses below ``CHUNKS`` are places in the spill; from there on they are places in the checkpoint's content,
all its runs laid end to end. Several states may share one ``Contents``: it only ever grows.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from diffkeeper.domain import chunks, errors
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.extents import HOLE, Extents

CHUNKS = 1 << 62
READ_BYTES = 1024 * 1024
# Chunks are read whole, and neighbours are often wanted next.
_CACHED_CHUNKS = 64

ReadChunk = Callable[[chunks.Ref], bytes]


class ChunkTable(NamedTuple):
    """The content of a checkpoint: its chunks in order, and where each ends."""

    refs: Sequence[chunks.Ref]
    ends: Sequence[int]


class Contents:
    """Any thread may read and add."""

    def __init__(self, folder: Path, table: ChunkTable, read_chunk: ReadChunk) -> None:
        fd, name = tempfile.mkstemp(prefix="spill-", dir=folder)
        os.unlink(name)
        self._fd = fd
        # States come and go; with the last of them goes the spill.
        weakref.finalize(self, os.close, fd)
        self.spilled = 0
        self.table = table
        self._read_chunk = read_chunk
        self._cache: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def add(self, data: bytes | bytearray | memoryview) -> int:
        """Keep ``data``; its address. Raises Transient when there is no room for it."""
        view, done = memoryview(data), 0
        with self._lock:
            address = self.spilled
            self.spilled += len(view)
        try:
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], address + done)
        except OSError as error:
            raise safe_paths.disk_error(error, "spilling what a moment of the history holds") from error
        return address

    def read(self, address: int, length: int) -> bytes:
        """The bytes at an address; raises Corrupt for a chunk that is good nowhere."""
        if address == HOLE:
            return bytes(length)
        if address < CHUNKS:
            data = os.pread(self._fd, length, address)
            assert len(data) == length, "what was spilled is there"
            return data
        parts: list[bytes] = []
        place = address - CHUNKS
        nth = bisect_right(self.table.ends, place)
        while length > 0:
            chunk = self._chunk(nth)
            start = place - (self.table.ends[nth] - len(chunk))
            part = chunk[start : start + length]
            parts.append(part)
            place += len(part)
            length -= len(part)
            nth += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def refs(self, address: int, length: int) -> list[tuple[chunks.Ref, int]]:
        """The chunks that a run of the checkpoint's content touches, each with its address."""
        place = address - CHUNKS
        first = bisect_right(self.table.ends, place)
        found = []
        for nth in range(first, len(self.table.refs)):
            ref = self.table.refs[nth]
            begin = self.table.ends[nth] - ref.size
            if begin >= place + length:
                break
            found.append((ref, CHUNKS + begin))
        return found

    def _chunk(self, nth: int) -> bytes:
        with self._lock:
            found = self._cache.get(nth)
        if found is None:
            found = self._read_chunk(self.table.refs[nth])
            with self._lock:
                self._cache[nth] = found
                while len(self._cache) > _CACHED_CHUNKS:
                    del self._cache[next(iter(self._cache))]
        return found


NOTHING = ChunkTable((), ())


def no_chunks(ref: chunks.Ref) -> bytes:
    raise errors.Corrupt(f"chunk {ref.hash.hex()} belongs to no checkpoint", reason="chunk-missing")


def blocks(contents: Contents, extents: Extents, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the part of a file that is not holes, at most ``READ_BYTES`` at a time."""
    for begin, stop, address in extents.pieces(start, end):
        if address == HOLE:
            continue
        for at in range(begin, stop, READ_BYTES):
            size = min(READ_BYTES, stop - at)
            yield at, contents.read(address + at - begin, size)
