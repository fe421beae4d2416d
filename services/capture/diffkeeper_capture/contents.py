"""What is in a file, put into the log by reading it: for a first sight, after a gap, and for the portable
probe.

Reading happens now while the log is at an earlier position, so bytes may get into the log ahead of the writes
that made them. That is harmless for the end result (the later records write the same bytes again) and is why
frames with such bytes are not called exact. Sizes are asked for at the moment they are logged, for the same
reason.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, MutableMapping
from dataclasses import dataclass, field

from diffkeeper_capture import page_digests, rereader
from diffkeeper_capture.page_digests import Digests
from diffkeeper_capture.shadow import Shadow

# A file changed less than this before it was looked at may change again within the same tick of the file
# system's clock, and then look unchanged. Linux ticks are at most 10 ms.
RACY_NS = 30_000_000

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
    # Of a sole source: what the log has in the file.
    digests: Digests = field(default_factory=Digests)
    # The time of change that the log has last, -1 when it has that of its own writes.
    mtime_ns: int = -1


# Of everybody who is no sole source.
NO_DIGESTS = Digests()


class Contents:
    """Reads files into the sink, in steps that yield how many bytes were read.

    A ``sole_source`` is the only one that puts content into the log (the portable probe), so what it
    remembers of a file is what the log has, and only blocks that differ are logged. Beside a probe that
    records writes, a file that may differ is logged whole.
    """

    def __init__(self, shadow: Shadow, *, sole_source: bool) -> None:
        # What was learnt since the tree was kept last; of a sole source, all.
        self.known: dict[int, Known] = {}
        # What files were when the tree was kept last, and are as far as is known, but for those in ``touched``.
        self.kept: MutableMapping[int, Fingerprint] = {}
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
            if not self.sole_source:
                known.mtime_ns = -1

    def is_unchanged(self, file_id: int, status: os.stat_result) -> bool:
        known = self.known.get(file_id)
        if known is not None:
            return known.fingerprint == fingerprint(status)
        return file_id not in self.touched and self.kept.get(file_id) == fingerprint(status)

    def is_fresh(self, file_id: int) -> bool:
        """Whether a file was read since the tree was kept last, and not touched since as far as is known here."""
        known = self.known.get(file_id)
        return not self.sole_source and known is not None and known.fingerprint != NEVER

    def forget_touched(self) -> None:
        """Whoever keeps the tree has what was learnt."""
        self.touched.clear()
        if not self.sole_source:
            self.known.clear()

    def read_small(self, file_id: int, fd: int, status: os.stat_result, at_us: int, now_ns: int) -> bool:
        """As ``read``, at once, of a file that the log has as empty and that is read by one call; False when this one
        is not. A volume may have a million of them.
        """
        size = status.st_size
        if self.sole_source or size > rereader.CHUNK_BYTES or status.st_blocks * 512 < size:
            return False
        data = os.pread(fd, size + 1, 0) if size else b""
        if len(data) != size:
            return False
        if size:
            self._shadow.write(file_id, 0, data, at_us)
        self.touched.add(file_id)
        self._shadow.change_attributes(file_id, {"mtime_ns": max(0, status.st_mtime_ns)}, at_us)
        is_racy = now_ns - status.st_ctime_ns < RACY_NS
        self.known[file_id] = Known(NEVER if is_racy else fingerprint(status), NO_DIGESTS, status.st_mtime_ns)
        return True

    def read(self, file_id: int, fd: int, at_us: int, now_ns: int, *, is_new: bool) -> Iterator[int]:
        """Bring the log's content of a file to what the disk has. ``is_new``: the log has it as empty."""
        # Taken before reading: what changes meanwhile looks changed next time.
        status = os.fstat(fd)
        known = self.known.get(file_id)
        has_logged = True
        if self.sole_source:
            known = known or Known(NEVER, Digests(is_complete=is_new))
            self.known[file_id] = known
            has_logged = yield from self._read_pages(file_id, fd, known.digests, at_us)
        elif is_new:
            yield from self._read_data(file_id, fd, at_us)
        else:
            yield from self.read_span(file_id, fd, 0, os.fstat(fd).st_size, at_us)
        if file_id not in self._shadow.tree.nodes:
            return
        self.touched.add(file_id)
        known = self.known.setdefault(file_id, Known(NEVER, NO_DIGESTS))
        if has_logged or known.mtime_ns != status.st_mtime_ns:
            # Every write of the log makes its time the present one at a replica.
            known.mtime_ns = status.st_mtime_ns
            self._shadow.change_attributes(file_id, {"mtime_ns": max(0, status.st_mtime_ns)}, at_us)
        is_racy = now_ns - status.st_ctime_ns < RACY_NS
        known.fingerprint = NEVER if is_racy else fingerprint(status)

    def _read_pages(self, file_id: int, fd: int, digests: Digests, at_us: int) -> Generator[int, None, bool]:
        """The pages that differ from those remembered; whether there were any."""
        before = self._shadow.content_changes
        yield from page_digests.log_changes(self._shadow, file_id, fd, digests, at_us)
        return self._shadow.content_changes != before

    def _read_data(self, file_id: int, fd: int, at_us: int) -> Iterator[int]:
        """All data of a file the log has as empty. Holes stay holes."""
        end = 0
        for offset, data in _data(fd, os.fstat(fd).st_size):
            if file_id not in self._shadow.tree.nodes:
                return
            self._shadow.write(file_id, offset, data, at_us)
            end = offset + len(data)
            yield len(data)
        size = os.fstat(fd).st_size
        if size > end and file_id in self._shadow.tree.nodes:
            self._shadow.truncate(file_id, size, at_us)

    def read_span(self, file_id: int, fd: int, start: int, end: int, at_us: int) -> Iterator[int]:
        """What a file has in a range now, holes punched, and its size."""
        at = start
        size = os.fstat(fd).st_size
        end = min(end, size)
        while at < end and file_id in self._shadow.tree.nodes:
            data_at, data_end = rereader.next_data(fd, at, end)
            if data_at > at:
                self._shadow.punch(file_id, at, data_at - at, at_us)
            for place, data in rereader.read_range(fd, data_at, data_end - data_at):
                if file_id not in self._shadow.tree.nodes:
                    return
                self._shadow.write(file_id, place, data, at_us)
                yield len(data)
            at = max(data_end, data_at, at + 1)
        if file_id not in self._shadow.tree.nodes:
            return
        if end >= size:
            # What the log has behind it is of an earlier time: cut off, before the file grows again.
            self._shadow.truncate(file_id, size, at_us)
        now = os.fstat(fd).st_size
        if now != size or end < size:
            self._shadow.truncate(file_id, now, at_us)


def _data(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < size:
        start, stop = rereader.next_data(fd, at, size)
        if start >= size:
            return
        yield from rereader.read_range(fd, start, stop - start)
        at = max(stop, start + 1)
