"""Answers who waits for a file, and fills what nobody waits for.

One thread takes events; what is filled already is allowed at once, the rest goes to a pool. The background would make
events if it opened a file by itself: it reads a byte, takes the descriptor of its own event, and fills through that.
Where events' descriptors cannot be written to, because the files are seen through a read-only mount, the filling
opens the files itself, and the events of its own threads are allowed unseen.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diffkeeper.domain import errors
from diffkeeper.lazy import handles
from diffkeeper.lazy.fanotify import Event, Group
from diffkeeper.lazy.filler import Filler
from diffkeeper.lazy.inflight import MOST_FDS, Inflight
from diffkeeper.lazy.plans import UNIT
from diffkeeper.lazy.sources import MOST_BYTES

THREADS = 8
# Who waits for a source that does not answer gets an error after this.
PATIENCE_S = 30.0
_RETRY_S = 0.2
# Files whose bytes are not known to be on disk: each holds a descriptor.
_SYNCED_AT = 100
# How long the background gives way to who waits, at most.
_GIVE_WAY_S = 0.02
# Calls that may make a hole where something was filled a moment ago.
_PUNCHING = {"x86_64": (285, 426), "aarch64": (47, 426)}.get(platform.machine(), ())

_log = logging.getLogger("diffkeeper.lazy")


class Server:
    def __init__(
        self, group: Group, filler: Filler, inflight: Inflight, mount_fd: int, *, by_itself: bool
    ) -> None:
        self._group, self._filler, self._inflight = group, filler, inflight
        self._mount_fd = mount_fd
        self._by_itself = by_itself
        # Threads that fill, where they do it by themselves.
        self._fillers: set[int] = set()
        self._by_inode = {file.inode: nth for nth, file in enumerate(filler.plan.files) if file.runs}
        self._pool = ThreadPoolExecutor(THREADS, "fill")
        self._places = threading.Semaphore(THREADS * 4)
        # Threads of this process that make events to get descriptors, and what they got.
        self._own: dict[int, int | None] = {}
        # Files that were touched, for the background to go on with.
        self._touched: deque[int] = deque(maxlen=256)
        self.damaged: dict[bytes, str] = {}
        self.lost_since: float | None = None

    # -- events ----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """What a worker before this one had taken. Of what it had not noted yet nothing is known: refused."""
        left = list(self._inflight.left())
        known = {fd for _, fd, *_ in left}
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for fd in range(MOST_FDS):
            if fd not in known:
                self._group.refuse(fd)
        taken = []
        for slot, fd, inode, offset, count in left:
            if _is_free(fd):
                os.dup2(null, fd, inheritable=False)
                taken.append((slot, fd, inode, offset, count))
            else:  # by something of this process's own
                self._group.refuse(fd)
                self._inflight.clear(slot)
        os.close(null)
        for one in taken:
            self._places.acquire()
            self._pool.submit(self._settle, *one)

    def serve(self) -> None:
        """For ever."""
        while True:
            taken = [self._take(event) for event in self._group.read()]
            for one in taken:
                if one is not None:
                    self._places.acquire()
                    self._pool.submit(self._work, *one)

    def _take(self, event: Event) -> tuple[int, Event, int] | None:
        """What has to be worked for: its slot, itself, and its file."""
        if event.tid in self._fillers:
            self._answer(event.fd, allowed=True)
            return None
        if event.tid in self._own:
            self._own[event.tid] = os.dup(event.fd)
            self._answer(event.fd, allowed=True)
            return None
        inode = os.fstat(event.fd).st_ino
        nth = self._by_inode.get(inode)
        if nth is None or (
            self._filler.is_ready(nth, event.fd, event.offset, event.offset + event.count)
            and not _may_punch(event.tid)
        ):
            self._answer(event.fd, allowed=True)
            return None
        return self._inflight.note(event.fd, inode, event.offset, event.count), event, nth

    def _work(self, slot: int, event: Event, nth: int) -> None:
        allowed = False
        try:
            if self._by_itself:
                allowed = self._fill_by_itself(nth, event.offset, event.count)
            else:
                allowed = self._fill(nth, event.fd, event.offset, event.count)
            if allowed and not self._by_itself and _may_punch(event.tid):
                self.sync()
        except Exception:  # noqa: BLE001  who waits must get an answer, and the log the reason
            _log.exception("an event could not be served")
        finally:
            self._end(slot, event.fd, allowed=allowed)

    def _settle(self, slot: int, fd: int, inode: int, offset: int, count: int) -> None:
        allowed = False
        try:
            nth = self._by_inode.get(inode)
            own = self.descriptor(nth) if nth is not None else None
            if nth is None or own is None:
                allowed = True  # nothing of it is ours any more
            else:
                try:
                    allowed = self._fill(nth, own, offset, count)
                    self.sync()
                finally:
                    os.close(own)
        except Exception:  # noqa: BLE001  who waits must get an answer, and the log the reason
            _log.exception("an event of the worker before could not be served")
        finally:
            self._end(slot, fd, allowed=allowed)

    def _fill_by_itself(self, nth: int, offset: int, count: int) -> bool:
        fd = self.descriptor(nth)
        if fd is None:
            return True
        try:
            return self._fill(nth, fd, offset, count)
        finally:
            os.close(fd)

    def _end(self, slot: int, fd: int, *, allowed: bool) -> None:
        # The number is given back last: a successor must not answer one that stands for another event by then.
        (self._group.allow if allowed else self._group.refuse)(fd)
        self._inflight.clear(slot)
        os.close(fd)
        self._places.release()

    def _answer(self, fd: int, *, allowed: bool) -> None:
        (self._group.allow if allowed else self._group.refuse)(fd)
        os.close(fd)

    def _fill(self, nth: int, fd: int, offset: int, count: int) -> bool:
        """Whether the range is filled now."""
        if not self._touched or self._touched[-1] != nth:
            self._touched.append(nth)
        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._filler.ensure(nth, fd, offset, offset + count)
                self.lost_since = None
                if self._filler.touched > _SYNCED_AT:
                    self.sync()
                return True
            except errors.Transient as error:
                self.lost_since = self.lost_since or time.monotonic()
                if time.monotonic() > ends:
                    self._refused(nth, offset, error)
                    return False
                time.sleep(_RETRY_S)
            except errors.DiffKeeperError as error:
                self._refused(nth, offset, error)
                return False

    def _refused(self, nth: int, offset: int, error: errors.DiffKeeperError) -> None:
        path = self._filler.plan.files[nth].path
        if not isinstance(error, errors.Transient):
            self.damaged[path] = error.message
        _log.warning("refused %s at %d: %s (%s)", os.fsdecode(path), offset, error.message, error.reason)

    # -- the background --------------------------------------------------------------------------------------

    def descriptor(self, nth: int) -> int | None:
        """The file, open so that what this thread does through it is not stopped; None when it is no more."""
        if self._by_itself:
            self._fillers.add(threading.get_native_id())
            return handles.open_file(self._mount_fd, self._filler.plan.files[nth].handle, os.O_RDWR)
        plain = handles.open_file(self._mount_fd, self._filler.plan.files[nth].handle)
        if plain is None:
            return None
        tid = threading.get_native_id()
        try:
            self._own[tid] = None
            os.pread(plain, 1, 0)
            found = self._own.pop(tid)
        finally:
            self._own.pop(tid, None)
            os.close(plain)
        if found is None:
            raise errors.DiffKeeperError(
                f"{os.fsdecode(self._filler.plan.files[nth].path)} makes no events", reason="no-events"
            )
        return found

    def fill_all(self) -> bool:
        """Everything once: what programs touched first, then the newest. Whether all is filled."""
        files = self._filler.plan.files
        order = sorted(self._by_inode.values(), key=lambda nth: files[nth].mtime_ns)
        while order:
            while self._touched:
                self._fill_file(self._touched.popleft())
            self._fill_file(order.pop())
        self.sync()
        return all(self._filler.marks.is_whole(nth) for nth in self._by_inode.values())

    def _fill_file(self, nth: int) -> None:
        marks, file = self._filler.marks, self._filler.plan.files[nth]
        if marks.is_whole(nth) or file.path in self.damaged:
            return
        fd = self.descriptor(nth)
        if fd is None:
            self._filler.forget(nth)
            return
        try:
            for start in range(0, file.units * UNIT, MOST_BYTES):
                if marks.missing(nth, range(start // UNIT, min((start + MOST_BYTES) // UNIT, file.units))):
                    self._give_way()
                    if not self._fill(nth, fd, start, MOST_BYTES):
                        return
        finally:
            os.close(fd)

    def _give_way(self) -> None:
        ends = time.monotonic() + _GIVE_WAY_S
        while self._inflight.busy and time.monotonic() < ends:
            time.sleep(0.001)

    def sync(self) -> None:
        """What is filled by now outlives a power cut; what is whole makes no events any more."""
        for _, fd in self._filler.sync():
            self._group.unmark(fd)
            os.close(fd)


def _is_free(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return True
    return False


def _may_punch(tid: int) -> bool:
    try:
        return int(Path(f"/proc/{tid}/syscall").read_text().split()[0]) in (*_PUNCHING, -1) or not _PUNCHING
    except (OSError, ValueError):
        return True
