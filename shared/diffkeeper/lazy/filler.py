"""Fills ranges of files: fetches what is missing, copies it in, marks it.

A copy goes through a mapping of the file, never by writing: a mapping cannot make a file longer, so a program that cuts
the file off meanwhile keeps it cut off. The bytes come into the mapping by a read of the kernel's, which gives an error
where the file has ended; a store of our own would be killed there.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterator, Sequence

from diffkeeper.lazy import sources
from diffkeeper.lazy.marks import Marks
from diffkeeper.lazy.plans import UNIT, File, Plan
from diffkeeper.lazy.sources import MOST_BYTES, Part, Source

# Files whose bytes are not known to be on disk; with more of them the whole file system is synced.
_MOST_TOUCHED = 200
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_size_t
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.pread.restype = ctypes.c_ssize_t
_libc.pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
_FAILED = ctypes.c_size_t(-1).value


class Filler:
    """For threads. ``folder_fd`` is on the file system of the tree."""

    def __init__(self, plan: Plan, marks: Marks, source: Source, folder_fd: int) -> None:
        self.plan, self.marks = plan, marks
        self._source = source
        self._folder_fd = folder_fd
        # Held while bytes go in and their marks are set, and while both are looked at together.
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._touched: dict[int, int] = {}
        self._many = False
        self._scratch = threading.local()

    def ensure(self, nth: int, fd: int, start: int, end: int) -> None:
        """When this returns, this part of the file holds what is planned, or what its users made of it. Raises what
        the source raises; then nothing of what is missing was marked.
        """
        file = self.plan.files[nth]
        if self._see_size(nth, fd):
            self.sync()
        units = range(start // UNIT, min(-(-max(end, start + 1) // UNIT), file.units))
        missing = self.marks.missing(nth, units)
        while missing:
            batch = missing[: MOST_BYTES // UNIT]
            missing = missing[len(batch) :]
            pieces = list(_pieces(file, batch))
            for group in _groups(pieces):
                self._put(nth, fd, group, self._source.fetch([Part(file.key, *piece) for piece in group]))
            with self._lock:
                self.marks.set(nth, batch)
                self._note(nth, fd)

    def is_ready(self, nth: int, fd: int, start: int, end: int) -> bool:
        """Whether ``ensure`` would have nothing to do."""
        units = range(start // UNIT, min(-(-max(end, start + 1) // UNIT), self.plan.files[nth].units))
        with self._lock:
            return os.fstat(fd).st_size >= self.marks.cut(nth) and not self.marks.missing(nth, units)

    def forget(self, nth: int) -> None:
        """The file is no more."""
        with self._lock:
            self.marks.set_cut(nth, 0)

    def sync(self) -> list[tuple[int, int]]:
        """What is filled by now is on disk, and known to be, when this returns. Gives the files that it was about and
        that are whole since, each with a descriptor for the caller to close.
        """
        with self._syncing:
            with self._lock:
                snapshot = self.marks.snapshot()
                touched, self._touched = self._touched, {}
                many, self._many = self._many, False
                whole = [nth for nth in touched if self.marks.is_whole(nth)]
            try:
                if many and _libc.syncfs(self._folder_fd) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                for fd in touched.values():
                    if not many:
                        os.fdatasync(fd)
                self.marks.keep(snapshot)
            except OSError:
                for fd in touched.values():
                    os.close(fd)
                raise
            for nth, fd in touched.items():
                if nth not in whole:
                    os.close(fd)
            return [(nth, touched[nth]) for nth in whole]

    @property
    def touched(self) -> int:
        """How many files were filled in since the last ``sync``."""
        return len(self._touched)

    def missing_bytes(self) -> int:
        """About how much is still to come."""
        return self.marks.missing_units() * UNIT

    # -- inside ----------------------------------------------------------------------------------------------

    def _see_size(self, nth: int, fd: int) -> bool:
        """Whether the file was cut off since it was last looked at. It cannot have grown again: that makes an event."""
        with self._lock:
            return self._cut(nth, fd)

    def _cut(self, nth: int, fd: int) -> bool:
        size = os.fstat(fd).st_size
        if size >= self.marks.cut(nth):
            return False
        self.marks.set_cut(nth, size)
        return True

    def _put(self, nth: int, fd: int, pieces: Sequence[tuple[int, int]], found: Sequence[memoryview]) -> None:
        with self._lock:
            before = os.fstat(fd)
            self._cut(nth, fd)
            cut = self.marks.cut(nth)
            for (offset, length), data in zip(pieces, found, strict=True):
                if self.marks.is_set(nth, offset // UNIT):
                    continue  # somebody else did, and its users may have written since
                stop = min(offset + length, cut)
                if offset < stop:
                    for begin, end in self._wanted(fd, offset, stop):
                        self._copy(fd, begin, data[begin - offset : end - offset])
            # Filling is no change of the file.
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            self._note(nth, fd)

    def _wanted(self, fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What is to be copied of a range: all, but after a power cut only where no block is."""
        if not self.marks.is_after_power_cut:
            yield start, end
            return
        while start < end:
            try:
                data = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = end
            if data > start:
                yield start, min(data, end)
            if data >= end:
                return
            start = os.lseek(fd, data, os.SEEK_HOLE)

    def _copy(self, fd: int, offset: int, data: memoryview) -> None:
        base = offset - offset % mmap.PAGESIZE
        length = offset - base + len(data)
        scratch = self._memory()
        os.pwrite(scratch, data, 0)
        # By ctypes, which lets other threads go on: one of them answers for the event that this may make.
        mapped = _libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, base)
        if mapped == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            done = 0
            while done < len(data):
                count = _libc.pread(scratch, mapped + offset - base + done, len(data) - done, done)
                if count <= 0:
                    code = ctypes.get_errno()
                    if code == errno.EFAULT and os.fstat(fd).st_size < offset + len(data):
                        return  # it was cut off just now, which its next event shows
                    raise OSError(code, os.strerror(code))
                done += count
        finally:
            _libc.munmap(mapped, length)

    def _memory(self) -> int:
        fd: int | None = getattr(self._scratch, "fd", None)
        if fd is None:
            fd = self._scratch.fd = os.memfd_create("dk-fill")
        return fd

    def _note(self, nth: int, fd: int) -> None:
        if nth in self._touched:
            return
        self._touched[nth] = os.dup(fd)
        if len(self._touched) > _MOST_TOUCHED:
            self._many = True


def _pieces(file: File, units: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(offset, length) of the content in these units, none of them over the end of a unit."""
    runs = iter(file.runs)
    run = next(runs, None)
    for unit in units:
        start, end = unit * UNIT, min((unit + 1) * UNIT, file.size)
        while run is not None and run[1] <= start:
            run = next(runs, None)
        while run is not None and run[0] < end:
            begin, stop = max(start, run[0]), min(end, run[1])
            yield begin, stop - begin
            if run[1] > end:
                break
            run = next(runs, None)


def _groups(pieces: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    group: list[tuple[int, int]] = []
    size = 0
    for piece in pieces:
        if group and (size + piece[1] > MOST_BYTES or len(group) >= sources.MOST_PARTS):
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece[1]
    if group:
        yield group
