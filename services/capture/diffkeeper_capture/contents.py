"""What is in a file, put into the log by reading it: for a first sight, after a gap, and for the portable
probe.

Reading happens now while the log is at an earlier position, so bytes may get into the log ahead of the writes
that made them. That is harmless for the end result (the later records write the same bytes again) and is why
frames with such bytes are not called exact. Sizes are asked for at the moment they are logged, for the same
reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from diffkeeper_capture import rereader
from diffkeeper_capture.shadow import Shadow

BLOCK_BYTES = 64 * 1024
# A file changed less than this before it was looked at may change again within the same tick of the file
# system's clock, and then look unchanged. Linux ticks are at most 10 ms.
RACY_NS = 30_000_000
_HASH_BYTES = 16
_ZERO_BLOCK = blake3(bytes(BLOCK_BYTES)).digest(length=_HASH_BYTES)

Fingerprint = tuple[int, int, int]


def fingerprint(status: os.stat_result) -> Fingerprint:
    """(size, mtime ns, ctime ns): the same as before means not changed, except within ``RACY_NS`` and by
    ``mmap``.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


NEVER: Fingerprint = (-1, 0, 0)


@dataclass(slots=True)
class Known:
    """What a file was when it was last read."""

    # ``NEVER`` when it may have changed unseen since.
    fingerprint: Fingerprint
    # Of a sole source: the size that the log gives the file, and the digests of its blocks in order.
    size: int = 0
    blocks: list[bytes] = field(default_factory=list)


class Contents:
    """Reads files into the sink, in steps that yield how many bytes were read.

    A ``sole_source`` is the only one that puts content into the log (the portable probe), so what it
    remembers of a file is what the log has, and only blocks that differ are logged. Beside a probe that
    records writes, a file that may differ is logged whole.
    """

    def __init__(self, shadow: Shadow, *, sole_source: bool) -> None:
        self.known: dict[int, Known] = {}
        # Files whose fingerprint may be another one than a tree that was kept says.
        self.touched: set[int] = set()
        self.sole_source = sole_source
        self._shadow = shadow
        shadow.on_forget.append(self._forget)

    def _forget(self, file_id: int) -> None:
        self.known.pop(file_id, None)
        self.touched.discard(file_id)

    def touch(self, file_id: int) -> None:
        """A record changed what the log has: what was known of the disk says nothing about that any more."""
        self.touched.add(file_id)
        known = self.known.get(file_id)
        if known is not None:
            known.fingerprint = NEVER

    def is_unchanged(self, file_id: int, status: os.stat_result) -> bool:
        known = self.known.get(file_id)
        return known is not None and known.fingerprint == fingerprint(status)

    def read(self, file_id: int, fd: int, at_us: int, now_ns: int, *, is_new: bool) -> Iterator[int]:
        """Bring the log's content of a file to what the disk has. ``is_new``: the log has it as empty."""
        # Taken before reading: what changes meanwhile looks changed next time.
        status = os.fstat(fd)
        if self.sole_source:
            if is_new:
                self.known.setdefault(file_id, Known(NEVER))
            yield from self._read_blocks(file_id, fd, at_us)
        elif is_new:
            yield from self._read_data(file_id, fd, at_us)
        else:
            yield from self.read_span(file_id, fd, 0, os.fstat(fd).st_size, at_us)
        if file_id not in self._shadow.tree.nodes:
            return
        is_racy = now_ns - status.st_ctime_ns < RACY_NS
        self.touched.add(file_id)
        known = self.known.setdefault(file_id, Known(NEVER))
        known.fingerprint = NEVER if is_racy else fingerprint(status)

    def _read_data(self, file_id: int, fd: int, at_us: int) -> Iterator[int]:
        """All data of a file the log has as empty. Holes stay holes."""
        end = 0
        for offset, data in _data(fd, os.fstat(fd).st_size):
            if file_id not in self._shadow.tree.nodes:
                return
            self._shadow.sink.add_write(file_id, offset, data, at_us)
            end = offset + len(data)
            yield len(data)
        size = os.fstat(fd).st_size
        if size > end and file_id in self._shadow.tree.nodes:
            self._shadow.truncate(file_id, size, at_us)

    def read_span(self, file_id: int, fd: int, start: int, end: int, at_us: int) -> Iterator[int]:
        """What a file has in a range now, holes punched, and its size."""
        at = start
        end = min(end, os.fstat(fd).st_size)
        while at < end and file_id in self._shadow.tree.nodes:
            data_at, data_end = rereader.next_data(fd, at, end)
            if data_at > at:
                self._shadow.punch(file_id, at, data_at - at, at_us)
            for place, data in rereader.read_range(fd, data_at, data_end - data_at):
                if file_id not in self._shadow.tree.nodes:
                    return
                self._shadow.sink.add_write(file_id, place, data, at_us)
                yield len(data)
            at = max(data_end, data_at, at + 1)
        if file_id in self._shadow.tree.nodes:
            self._shadow.truncate(file_id, os.fstat(fd).st_size, at_us)

    def _read_blocks(self, file_id: int, fd: int, at_us: int) -> Iterator[int]:
        """The blocks whose digests differ from those remembered; what is not remembered counts as
        different.
        """
        known = self.known.get(file_id)
        old, logged = (known.blocks, known.size) if known is not None else ([], -1)
        new: list[bytes] = []
        at, size = 0, os.fstat(fd).st_size
        while at < size and file_id in self._shadow.tree.nodes:
            index = len(new)
            before = old[index] if index < len(old) else None
            # Of a new file all is zeros that was never written.
            if before is None and known is not None and at >= logged:
                before = _ZERO_BLOCK
            if rereader.next_data(fd, at, size)[0] >= at + BLOCK_BYTES:
                if before != _ZERO_BLOCK:
                    self._shadow.punch(file_id, at, BLOCK_BYTES, at_us)
                new.append(_ZERO_BLOCK)
                at += BLOCK_BYTES
                continue
            data = os.pread(fd, BLOCK_BYTES, at)
            digest = blake3(data).digest(length=_HASH_BYTES)
            if data and digest != before:
                self._shadow.sink.add_write(file_id, at, data, at_us)
                logged = max(logged, at + len(data)) if logged >= 0 else logged
            new.append(digest)
            at += len(data)
            yield len(data)
            if len(data) < BLOCK_BYTES:
                break
        if file_id not in self._shadow.tree.nodes:
            return
        size = os.fstat(fd).st_size
        if logged != size:
            self._shadow.truncate(file_id, size, at_us)
        known = self.known.setdefault(file_id, Known(NEVER))
        known.size, known.blocks = size, new


def _data(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < size:
        start, stop = rereader.next_data(fd, at, size)
        if start >= size:
            return
        yield from rereader.read_range(fd, start, stop - start)
        at = max(stop, start + 1)
