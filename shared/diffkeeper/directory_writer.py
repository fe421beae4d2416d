"""Carries out a stream of ``changes`` in a directory, and never outside of it.

Every step is on one name in one directory that was opened name by name without following links. Owners are
set by root only; set-id bits and privileged extended attributes are left out, and counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from diffkeeper.changes import Change
from diffkeeper.domain import errors

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE_FLAGS = _FILE_FLAGS | os.O_CREAT | os.O_EXCL
_LOOK_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_XATTR_ALLOWED = (b"user.", b"system.posix_acl_")
_SETID_BITS = 0o6000
_PUNCH = 0x02 | 0x01
_EXCHANGE = 2
_READ_BYTES = 1024 * 1024
_PASSING_XATTR = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.ENODATA, errno.E2BIG, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class DirectoryWriter:
    """One directory. ``do`` raises Refused (``target-differs``) where the directory is not as the stream
    takes it to be, Transient when the disk is full, Corrupt when a digest does not hold.
    """

    def __init__(self, root: Path, *, again: bool = False) -> None:
        """``again``: the stream was begun before and broke off, so what it makes may stand there already."""
        self._again = again
        self._root = os.open(root, _DIR_FLAGS)
        self._owners = os.geteuid() == 0
        # The directory and the file used last: streams stay with both for long.
        self._at: tuple[bytes, int] = (b"", self._root)
        self._open: tuple[bytes, int] | None = None
        # What could not be carried over, by cause.
        self.left_out: Counter[str] = Counter()
        self.written_bytes = 0

    def __enter__(self) -> DirectoryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        os.close(self._root)

    def do(self, change: Change) -> None:
        word, *rest = change
        method = getattr(self, f"_do_{word}", None)
        if method is None:
            return  # what only tells something
        try:
            method(*rest)
        except OSError as error:
            raise _meant(error, word, rest[0]) from error

    def sync(self) -> None:
        """Everything written is on disk when this returns."""
        self._forget()
        if _libc.syncfs(self._root) != 0:
            code = ctypes.get_errno()
            raise _meant(OSError(code, os.strerror(code)), "sync", b"")

    def digest(self, path: bytes) -> bytes:
        """BLAKE3 of a file's content as it stands on disk."""
        hasher = blake3()
        fd = self._file(path)
        at = 0
        while data := os.pread(fd, _READ_BYTES, at):
            hasher.update(data)
            at += len(data)
        return hasher.digest()

    # -- the words -------------------------------------------------------------------------------------------

    def _do_mkdir(self, path: bytes) -> None:
        parent, name = self._parent(path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not self._again:
                raise
            os.close(os.open(name, _DIR_FLAGS, dir_fd=parent))  # it is one
            os.chmod(name, 0o700, dir_fd=parent)

    def _do_create(self, path: bytes) -> None:
        parent, name = self._parent(path)
        try:
            fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=parent)
        except FileExistsError:
            if not self._again:
                raise
            return  # what it holds is of the same moment, and verified by its digest
        self._keep_file(path, fd)

    def _do_fifo(self, path: bytes) -> None:
        parent, name = self._free(path)
        os.mkfifo(name, 0o600, dir_fd=parent)

    def _do_symlink(self, path: bytes, target: bytes) -> None:
        parent, name = self._free(path)
        os.symlink(target, name, dir_fd=parent)

    def _free(self, path: bytes) -> tuple[int, bytes]:
        """Parent and name, nothing under it that an earlier try left."""
        parent, name = self._parent(path)
        if self._again:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=parent)
        return parent, name

    def _do_link(self, old: bytes, new: bytes) -> None:
        parent, name = self._parent(old)
        parent = os.dup(parent)
        try:
            to_parent, to_name = self._free(new)
            os.link(name, to_name, src_dir_fd=parent, dst_dir_fd=to_parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def _do_rename(self, old: bytes, new: bytes, swap: bool) -> None:
        self._close_file()
        parent, name = self._parent(old)
        parent = os.dup(parent)
        try:
            to_parent, to_name = self._parent(new)
            if swap:
                if _libc.renameat2(parent, name, to_parent, to_name, _EXCHANGE) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            else:
                os.rename(name, to_name, src_dir_fd=parent, dst_dir_fd=to_parent)
        finally:
            os.close(parent)
        self._forget()

    def _do_unlink(self, path: bytes) -> None:
        self._close_file()
        parent, name = self._parent(path)
        os.unlink(name, dir_fd=parent)

    def _do_rmdir(self, path: bytes) -> None:
        self._forget()
        parent, name = self._parent(path)
        os.rmdir(name, dir_fd=parent)

    def _do_write(self, path: bytes, offset: int, data: bytes) -> None:
        fd, done = self._file(path), 0
        view = memoryview(data)
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)
        self.written_bytes += len(data)

    def _do_truncate(self, path: bytes, size: int) -> None:
        os.ftruncate(self._file(path), size)

    def _do_punch(self, path: bytes, offset: int, length: int) -> None:
        fd = self._file(path)
        end = min(offset + length, os.fstat(fd).st_size)
        if end <= offset:
            return
        if _libc.fallocate(fd, _PUNCH, offset, end - offset) != 0:
            code = ctypes.get_errno()
            if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise OSError(code, os.strerror(code))
            zeros = bytes(64 * 1024)
            while offset < end:
                offset += os.pwrite(fd, zeros[: end - offset], offset)

    def _do_owner(self, path: bytes, mode: int, uid: int, gid: int) -> None:
        if mode & _SETID_BITS:
            self.left_out["set-id"] += 1
        parent, name = self._parent(path) if path else (self._root, b".")
        if self._owners:
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        with self._handle(path) as handle:
            if handle is not None:
                os.chmod(handle, mode & 0o7777 & ~_SETID_BITS)

    def _do_times(self, path: bytes, atime: int | None, mtime: int | None) -> None:
        self._close_file()
        parent, name = self._parent(path) if path else (self._root, b".")
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        times = (
            found.st_atime_ns if atime is None else atime,
            found.st_mtime_ns if mtime is None else mtime,
        )
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _do_xattr(self, path: bytes, name: bytes, value: bytes | None) -> None:
        if not name.startswith(_XATTR_ALLOWED) or b"\0" in name:
            self.left_out["xattr-not-allowed"] += 1
            return
        with self._handle(path) as handle:
            if handle is None:
                return
            try:
                if value is None:
                    os.removexattr(handle, name)
                else:
                    os.setxattr(handle, name, value)
            except OSError as error:
                if error.errno not in _PASSING_XATTR:
                    raise
                self.left_out["xattr-unsupported"] += 1

    def _do_digest(self, path: bytes, expected: bytes) -> None:
        if self.digest(path) != expected:
            raise errors.Corrupt(
                f"{os.fsdecode(path)} does not read back as it was sent; it was left there for you to look at",
                reason="restored-differs",
                hint="check the disk (dmesg), and restore again",
                path=os.fsdecode(path),
            )

    # -- descriptors -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handle(self, path: bytes) -> Iterator[int | str | None]:
        """What stands at a path, for calls that take a descriptor; None for a symbolic link.

        A real descriptor wherever it may be had: a change made through /proc is seen by no capture agent.
        """
        parent, name = self._parent(path) if path else (self._root, b".")
        fd = -1
        handle: int | str | None = None
        try:
            try:
                fd = os.open(name, _LOOK_FLAGS, dir_fd=parent)
                handle = fd
            except PermissionError:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
                handle = f"/proc/self/fd/{fd}"
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
            yield handle
        finally:
            if fd >= 0:
                os.close(fd)

    def _file(self, path: bytes) -> int:
        if self._open is not None and self._open[0] == path:
            return self._open[1]
        parent, name = self._parent(path)
        try:
            fd = os.open(name, _FILE_FLAGS, dir_fd=parent)
        except PermissionError:
            # Without root a file whose mode forbids it is opened by widening the mode for a moment.
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode & 0o7777
            os.chmod(name, mode | 0o600, dir_fd=parent)
            try:
                fd = os.open(name, _FILE_FLAGS, dir_fd=parent)
            finally:
                os.chmod(name, mode, dir_fd=parent)
        return self._keep_file(path, fd)

    def _keep_file(self, path: bytes, fd: int) -> int:
        self._close_file()
        self._open = (path, fd)
        return fd

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        """The directory that a path's last name stands in. It stays open until the next call."""
        above, _, name = path.rpartition(b"/")
        if self._at[0] == above:
            return self._at[1], name
        fd = os.dup(self._root)
        for component in above.split(b"/") if above else []:
            try:
                below = os.open(component, _DIR_FLAGS, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        self._leave_parent()
        self._at = (above, fd)
        return fd, name

    def _leave_parent(self) -> None:
        if self._at[1] != self._root:
            os.close(self._at[1])
        self._at = (b"", self._root)

    def _close_file(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _forget(self) -> None:
        self._close_file()
        self._leave_parent()


def _meant(error: OSError, word: str, path: object) -> errors.DiffKeeperError:
    where = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.Transient(
            f"the disk is full ({word} {where}); what is there is kept",
            reason="disk-full",
            hint="make room, and give the same command again: it goes on from there",
        )
    return errors.Refused(
        f"{word} {where} failed: {error.strerror}; nothing after it was done",
        reason="target-differs",
        hint="something else changes the directory, or it forbids it; look at it and try again",
        path=where,
    )
