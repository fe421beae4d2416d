"""A program whose system calls are real and whose records are forged: each call is made, then told as the
kernel side would.

Records can be held back (``held``), so that the disk gets ahead of the log as it does behind a busy ring, and
marked as overlapped or lost. Numbers follow ``records.py``.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from diffkeeper_capture.path_resolver import kernel_device
from diffkeeper_capture.records import NO_VOLUME, Flag, Kind, PathOp, Record
from diffkeeper_capture.rereader import generation_of

_libc = ctypes.CDLL(None, use_errno=True)
Handler = Callable[[Record, memoryview], None]


class ForgedProgram:
    """Works below ``root`` with relative paths as one process whose working directory is the root."""

    def __init__(self, root: Path, handle: Handler) -> None:
        self.root = root
        self.tgid = os.getpid()
        self.held: list[tuple[Record, bytes]] = []
        self.is_holding = False
        self.flags = 0
        self.made = 0
        self._handle = handle
        status = os.stat(root)
        self._device = kernel_device(status.st_dev)
        self._base = status.st_ino
        self._machine_root = os.stat("/").st_ino
        self._mount_ns = os.stat("/proc/self/ns/mnt").st_ino
        self._start_ns = 0

    # ---- calls

    def write(self, path: str, offset: int, data: bytes, flags: int = 0) -> None:
        """``pwrite`` on a file opened with O_CREAT."""
        fd = self.open(path, os.O_RDWR | os.O_CREAT)
        try:
            self.pwrite(fd, offset, data, flags)
        finally:
            os.close(fd)

    def open(self, path: str, flags: int = os.O_RDWR | os.O_CREAT, mode: int = 0o644) -> int:
        full = self.root / path
        existed = full.exists()
        self._begin()
        fd = os.open(full, flags, mode)
        what = 0
        if not existed:
            what = Flag.CREATED
        elif flags & os.O_TRUNC:
            what = Flag.TRUNCATED
        if what:
            real = Path(os.path.realpath(full))
            status = os.fstat(fd)
            parent = os.stat(real.parent)
            self._tell(
                Kind.OPEN,
                os.fsencode(real.name),
                flags=what,
                inode=status.st_ino,
                generation=generation_of(fd),
                inode2=parent.st_ino,
                aux=status.st_mode,
                uid=status.st_uid,
                gid=status.st_gid,
            )
        return fd

    def pwrite(self, fd: int, offset: int, data: bytes, flags: int = 0) -> None:
        self._begin()
        os.pwrite(fd, data, offset)
        payload = b"" if flags & Flag.UNREADABLE else data
        self._tell_fd(Kind.WRITE, fd, payload, flags=flags, offset=offset, length=len(data))

    def ftruncate(self, fd: int, size: int) -> None:
        self._begin()
        os.ftruncate(fd, size)
        self._tell_fd(Kind.SIZE, fd, aux=size)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """``mode``: 3 punches, 8 collapses, 16 zeroes, 32 inserts."""
        self._begin()
        code = _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
        if code:
            raise OSError(ctypes.get_errno(), "fallocate")
        self._tell_fd(Kind.ALLOCATED, fd, offset=offset, length=length, extra=mode, aux=os.fstat(fd).st_size)

    def fsync(self, fd: int) -> None:
        self._begin()
        self._tell_fd(Kind.SYNC, fd, extra=74)

    def fchmod(self, fd: int, mode: int) -> None:
        self._begin()
        os.fchmod(fd, mode)
        self._tell_fd(Kind.ATTR, fd, aux=os.fstat(fd).st_mode)

    def fsetxattr(self, fd: int, name: str, value: bytes | None) -> None:
        self._begin()
        if value is None:
            os.removexattr(fd, name)
        else:
            os.setxattr(fd, name, value)
        self._tell_fd(Kind.XATTR, fd, os.fsencode(name))

    def mapped(self, fd: int) -> None:
        self._begin()
        self._tell_fd(Kind.MAPPED, fd)

    def unlink(self, path: str) -> None:
        self._begin()
        os.unlink(self._full(path))
        self._tell_path(PathOp.UNLINK, path)

    def rmdir(self, path: str) -> None:
        self._begin()
        os.rmdir(self._full(path))
        self._tell_path(PathOp.RMDIR, path)

    def rename(self, source: str, target: str, flags: int = 0) -> None:
        self._begin()
        code = _libc.renameat2(
            -100, os.fsencode(self._full(source)), -100, os.fsencode(self._full(target)), flags
        )
        if code:
            raise OSError(ctypes.get_errno(), "renameat2")
        self._tell_path(PathOp.RENAME, source, target, extra=flags)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._begin()
        os.mkdir(self._full(path), mode)
        self._tell_path(PathOp.MKDIR, path, aux=mode)

    def link(self, source: str, target: str) -> None:
        self._begin()
        os.link(self._full(source), self._full(target), follow_symlinks=False)
        self._tell_path(PathOp.LINK, source, target)

    def symlink(self, target: str, path: str) -> None:
        self._begin()
        os.symlink(target, self._full(path))
        self._tell_path(PathOp.SYMLINK, target, path)

    def mkfifo(self, path: str) -> None:
        self._begin()
        os.mkfifo(self._full(path), 0o600)
        self._tell_path(PathOp.MKNOD, path, aux=stat.S_IFIFO | 0o600)

    def chmod(self, path: str, mode: int) -> None:
        self._begin()
        os.chmod(self._full(path), mode)
        self._tell_path(PathOp.CHMOD, path, aux=mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._begin()
        os.chown(self._full(path), uid, gid)
        self._tell_path(PathOp.CHOWN, path, uid=uid, gid=gid)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        self._begin()
        os.utime(self._full(path), ns=(atime_ns, mtime_ns))
        self._tell_path(PathOp.UTIMES, path, aux=atime_ns, inode2=mtime_ns)

    def truncate(self, path: str, size: int) -> None:
        self._begin()
        os.truncate(self._full(path), size)
        self._tell_path(PathOp.TRUNCATE, path, aux=size)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        self._begin()
        os.setxattr(self._full(path), name, value)
        self._tell_path(PathOp.SETXATTR, path, name)

    # ---- telling

    def release(self) -> None:
        """Deliver what was held back, in order."""
        held, self.held = self.held, []
        for record, payload in held:
            self._handle(record, memoryview(payload))

    def tell(self, record: Record, payload: bytes = b"") -> None:
        self.made += 1
        if self.is_holding:
            self.held.append((record, payload))
        else:
            self._handle(record, memoryview(payload))

    def record(self, kind: int, **fields: int) -> Record:
        values = dict.fromkeys(Record._fields, 0)
        values |= {
            "kind": int(kind),
            "start_ns": self._start_ns or time.monotonic_ns(),
            "end_ns": time.monotonic_ns(),
            "tgid": self.tgid,
            "tid": self.tgid,
            "device": self._device,
            "device2": self._device,
            "mount_ns": self._mount_ns,
        }
        values |= fields
        values["flags"] = int(values["flags"]) | self.flags
        return Record(**values)

    def _base_of(self, path: str) -> int:
        """The inode that a path is relative to: the program's root, or its working directory."""
        return self._machine_root if os.path.isabs(path) else self._base

    def _full(self, path: str) -> Path:
        return self.root / path

    def _begin(self) -> None:
        self._start_ns = time.monotonic_ns()

    def _tell(self, kind: int, payload: bytes = b"", **fields: int) -> None:
        fields.setdefault("length", len(payload))
        self.tell(self.record(kind, **fields), payload)

    def _tell_fd(self, kind: int, fd: int, payload: bytes = b"", **fields: int) -> None:
        status = os.fstat(fd)
        fields["flags"] = fields.get("flags", 0) | (0 if status.st_nlink else Flag.UNLINKED)
        self._tell(
            kind,
            payload,
            inode=status.st_ino,
            generation=generation_of(fd) if stat.S_ISREG(status.st_mode) else 0,
            uid=status.st_uid,
            gid=status.st_gid,
            **fields,
        )

    def _tell_path(self, op: PathOp, path: str, path2: str | None = None, **fields: int) -> None:
        payload = os.fsencode(path) + b"\0"
        if path2 is not None:
            payload += os.fsencode(path2) + b"\0"
        self._tell(
            Kind.PATH,
            payload,
            volume=NO_VOLUME,
            offset=int(op),
            **{"inode": self._base_of(path), "inode2": self._base_of(path2 or ""), **fields},
        )
