"""Pre-content events of fanotify, by ctypes: the kernel stops whoever reads, writes, maps or cuts a marked file until
it is answered.

Layouts and numbers are those of ``linux/fanotify.h``. Linux 6.14 or later, CAP_SYS_ADMIN, and a file system that
supports it (ext4, XFS, btrfs). An event's descriptor makes no events itself, so what is written through it is the
filling. When the last descriptor of a group is closed the kernel lets everybody pass: keep one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffkeeper.lazy import handles

PRE_ACCESS = 0x0010_0000
_Q_OVERFLOW = 0x4000
_CLOEXEC, _CLASS_PRE_CONTENT, _UNLIMITED_QUEUE, _UNLIMITED_MARKS, _REPORT_TID = 0x01, 0x08, 0x10, 0x20, 0x100
_MARK_ADD, _MARK_REMOVE = 0x01, 0x02
_AT_FDCWD = -100
_INFO_RANGE = 6
_VERSION = 3
_HEAD = struct.Struct("=IBBHQii")
_INFO_HEAD = struct.Struct("=BBH")
_RANGE = struct.Struct("=4xIQQ")
_RESPONSE = struct.Struct("=iI")
_ALLOW, _DENY = 1, 2
# Events are read a few at a time: each holds a descriptor until it is answered.
_READ_BYTES = 512
# What a refused program sees.
REFUSED_WITH = errno.EIO

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)


@dataclass(frozen=True, slots=True)
class Event:
    """``fd`` is the file, open as the group says; whoever takes the event answers it once."""

    fd: int
    offset: int
    # 0 where no range is told.
    count: int
    # The thread that waits.
    tid: int


class Group:
    """One group; ``fd`` may be handed to other processes, which then hold it too."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls, *, read_only: bool = False) -> Group:
        """``read_only``: events' descriptors are, as they have to be where files are seen through a mount that is.

        Raises OSError where the kernel has no pre-content events, or the rights lack.
        """
        flags = _CLASS_PRE_CONTENT | _CLOEXEC | _UNLIMITED_QUEUE | _UNLIMITED_MARKS | _REPORT_TID
        how = os.O_RDONLY if read_only else os.O_RDWR
        fd = _libc.fanotify_init(flags, how | os.O_CLOEXEC | getattr(os, "O_LARGEFILE", 0))
        if fd < 0:
            raise _os_error("fanotify_init")
        return cls(fd)

    def mark(self, fd: int) -> None:
        """From now on whoever opens this file and touches it is stopped."""
        self._mark(_MARK_ADD, fd)

    def unmark(self, fd: int) -> None:
        """The file is its users' own; of one that has no mark nothing is left to do."""
        try:
            self._mark(_MARK_REMOVE, fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def read(self) -> Iterator[Event]:
        """Wait for events. Each has to be answered."""
        buffer = os.read(self.fd, _READ_BYTES)
        at = 0
        while at < len(buffer):
            length, version, _, head_length, mask, fd, tid = _HEAD.unpack_from(buffer, at)
            assert version == _VERSION, "the kernel keeps its format"
            if fd >= 0 and not mask & _Q_OVERFLOW:
                offset, count = _range_of(buffer, at + head_length, at + length)
                yield Event(fd, offset, count, tid)
            at += length

    def allow(self, fd: int) -> bool:
        """Let who waits for the event of this descriptor number go on; False when nobody does."""
        return self._answer(fd, _ALLOW)

    def refuse(self, fd: int) -> bool:
        """Who waits gets an error (``REFUSED_WITH``)."""
        return self._answer(fd, _DENY | REFUSED_WITH << 24)

    def close(self) -> None:
        os.close(self.fd)

    def _answer(self, fd: int, response: int) -> bool:
        try:
            os.write(self.fd, _RESPONSE.pack(fd, response))
        except FileNotFoundError:
            return False
        return True

    def _mark(self, how: int, fd: int) -> None:
        # By the descriptor itself: a path would be another file after a rename.
        path = b"/proc/self/fd/%d" % fd
        if _libc.fanotify_mark(self.fd, how, PRE_ACCESS, _AT_FDCWD, path) != 0:
            raise _os_error("fanotify_mark")


def why_not(directory: Path) -> str | None:
    """Why files in a directory cannot be filled on demand; None when they can."""
    probe = directory / f".dkctl-probe-{os.getpid()}"
    try:
        group = Group.make()
    except OSError as error:
        if error.errno == errno.EPERM:
            return "that needs root (CAP_SYS_ADMIN)"
        return f"the kernel has no pre-content events (Linux 6.14 or later has): {error.strerror}"
    try:
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            group.mark(fd)
            group.unmark(fd)
            again = handles.open_file(fd, handles.of(fd))
            assert again is not None, "it is open"
            os.close(again)
        finally:
            os.close(fd)
            os.unlink(probe)
    except OSError as error:
        return f"the file system of {directory} or the kernel does not support it: {error.strerror}"
    finally:
        group.close()
    return None


def _range_of(buffer: bytes, at: int, end: int) -> tuple[int, int]:
    while at < end:
        kind, _, length = _INFO_HEAD.unpack_from(buffer, at)
        if kind == _INFO_RANGE:
            _, offset, count = _RANGE.unpack_from(buffer, at)
            return offset, count
        at += max(length, _INFO_HEAD.size)
    return 0, 0


def _os_error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")
