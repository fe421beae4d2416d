"""Pages that may change without a system call: dirty pages of mapped files, and what the kernel itself writes.

The kernel side names each page that turns dirty. From then on it may be stored to until it is written back, so
it is read at every barrier, and forgotten once the page cache says that it was clean before it was read: the
next store to it will be told again. What a page had at the last reading is remembered, so that only pages
that differ are logged.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

from blake3 import blake3

from diffkeeper.domain import frames
from diffkeeper_capture import rereader
from diffkeeper_capture.shadow import Shadow

PAGE_BYTES = mmap.PAGESIZE
# Read at once. A power of two, so that asking which half is clean comes out even.
RUN_PAGES = 64
_DIGEST_BYTES = 16
_UNKNOWN = b""
_NR_CACHESTAT = 451
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

Run = tuple[int, int]  # first page, and the one after the last


class DirtyPages:
    """Of one volume. A file is in ``pages`` as long as a page of it may change untold."""

    def __init__(self, shadow: Shadow, reader: rereader.Rereader) -> None:
        self._shadow = shadow
        self._reader = reader
        # id → page number → digest of what the log has, unknown until it is read.
        self.pages: dict[int, dict[int, bytes]] = {}
        # Ids of which any page may be dirty that nobody told: their data is looked through once.
        self.unsure: set[int] = set()
        shadow.on_forget.append(self._forget)

    def _forget(self, file_id: int) -> None:
        self.pages.pop(file_id, None)
        self.unsure.discard(file_id)

    def dirtied(self, file_id: int, first: int, count: int) -> None:
        known = self.pages.setdefault(file_id, {})
        for page in range(first, first + count):
            known.setdefault(page, _UNKNOWN)

    def follow_dirty(self, file_id: int, fd: int) -> bool:
        """Follow the pages that are dirty now; whether there are any."""
        behind = -(-os.fstat(fd).st_size // PAGE_BYTES)
        for first, last in _dirty_runs(fd, (0, behind)) if behind else ():
            self.dirtied(file_id, first, last - first)
        return file_id in self.pages

    def doubt(self, file_id: int) -> None:
        self.pages.setdefault(file_id, {})
        self.unsure.add(file_id)

    def forget_range(self, file_id: int, offset: int, length: int) -> None:
        """The log got other bytes for this range: what it has of these pages is not known any more."""
        known = self.pages.get(file_id)
        if not known:
            return
        first, last = offset // PAGE_BYTES, (offset + length) // PAGE_BYTES
        if last - first < len(known):
            touched = [page for page in range(first, last + 1) if page in known]
        else:
            touched = [page for page in known if first <= page <= last]
        for page in touched:
            known[page] = _UNKNOWN

    def log_changes(self, at_us: int) -> Iterator[int]:
        """Log the pages that differ; yields the bytes read. A file that cannot be found now is kept for
        later.
        """
        for file_id in list(self.pages):
            known = self.pages.get(file_id)
            if known is None:
                continue
            try:
                with self._reader.file(file_id) as fd:
                    if file_id in self.unsure:
                        yield from self._look_through(file_id, fd, known, at_us)
                    yield from self._log_file(file_id, fd, known, at_us)
            except rereader.Elsewhere:
                continue
            if not known and self.pages.get(file_id) is known:
                del self.pages[file_id]

    def _look_through(self, file_id: int, fd: int, known: dict[int, bytes], at_us: int) -> Iterator[int]:
        """All data of a file once, a run at a time; its dirty pages stay known."""
        at, size = 0, os.fstat(fd).st_size
        while at < size and file_id in self.pages:
            start, stop = rereader.next_data(fd, at, size)
            if start >= size:
                break
            first = start // PAGE_BYTES
            run = first, min(first + RUN_PAGES, -(-stop // PAGE_BYTES))
            for page in range(*run):
                known.setdefault(page, _UNKNOWN)
            yield self._log_run(file_id, fd, run, known, at_us)
            at = run[1] * PAGE_BYTES
        self.unsure.discard(file_id)

    def _log_file(self, file_id: int, fd: int, known: dict[int, bytes], at_us: int) -> Iterator[int]:
        for run in list(_runs(sorted(known))):
            if file_id not in self.pages:
                return
            yield self._log_run(file_id, fd, run, known, at_us)

    def _log_run(self, file_id: int, fd: int, run: Run, known: dict[int, bytes], at_us: int) -> int:
        # Before reading: what is stored after a page was clean is told again.
        clean = list(clean_runs(fd, run))
        first, behind = run
        data = os.pread(fd, (behind - first) * PAGE_BYTES, first * PAGE_BYTES)
        changed = []
        for page in range(first, behind):
            at = (page - first) * PAGE_BYTES
            part = data[at : at + PAGE_BYTES]
            if not part:
                known.pop(page, None)  # cut off
                continue
            digest = blake3(part).digest(length=_DIGEST_BYTES)
            if known.get(page) != digest:
                known[page] = digest
                changed.append(page)
        for start, stop in _runs(changed):
            part = data[(start - first) * PAGE_BYTES : (stop - first) * PAGE_BYTES]
            self._shadow.write(file_id, start * PAGE_BYTES, part, at_us)
        if changed:
            self._shadow.sink.note_fidelity(frames.Fidelity.PAGE)
        for start, stop in clean:
            for page in range(start, stop):
                known.pop(page, None)
        return max(len(data), 1)


def clean_runs(fd: int, run: Run) -> Iterator[Run]:
    """Which of these pages are not dirty in the page cache; none where it cannot be asked."""
    waiting = [run]
    while waiting:
        first, behind = waiting.pop()
        dirty = _count_dirty(fd, first, behind)
        if dirty == 0:
            yield first, behind
        elif dirty is not None and dirty < behind - first:
            middle = (first + behind) // 2
            waiting += [(first, middle), (middle, behind)]


def _dirty_runs(fd: int, run: Run) -> Iterator[Run]:
    """Which of these pages are dirty; none where it cannot be asked."""
    waiting = [run]
    while waiting:
        first, behind = waiting.pop()
        dirty = _count_dirty(fd, first, behind)
        if dirty and dirty >= behind - first:
            yield first, behind
        elif dirty:
            middle = (first + behind) // 2
            waiting += [(first, middle), (middle, behind)]


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Statistics(ctypes.Structure):
    _fields_ = (
        ("cached", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def _count_dirty(fd: int, first: int, behind: int) -> int | None:
    """Dirty pages of a range (cachestat, Linux 6.5); None when the kernel does not say."""
    asked = _Range(first * PAGE_BYTES, (behind - first) * PAGE_BYTES)
    found = _Statistics()
    code = _LIBC.syscall(
        ctypes.c_long(_NR_CACHESTAT), ctypes.c_int(fd), ctypes.byref(asked), ctypes.byref(found), 0
    )
    return None if code else int(found.dirty)


def _runs(numbers: list[int]) -> Iterator[Run]:
    """Consecutive ascending numbers together, at most ``RUN_PAGES`` of them."""
    first = behind = -1
    for number in numbers:
        if number != behind or number - first >= RUN_PAGES:
            if behind >= 0:
                yield first, behind
            first = number
        behind = number + 1
    if behind >= 0:
        yield first, behind
