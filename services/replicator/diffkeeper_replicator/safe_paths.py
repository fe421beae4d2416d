"""System calls beneath a replica's root, so that no name in a log and no swap on disk leads outside.

Everything opens relative to a directory descriptor, with ``openat2`` and ``RESOLVE_BENEATH`` where the kernel
has it and by a walk of single components otherwise; symbolic links are never followed. Names are raw bytes.
Errors are plain OSErrors: what one means for a replica is said by ``disk_error`` at the callers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct

from diffkeeper.domain import errors, trees

_SYS_OPENAT2 = 437
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_RENAME_EXCHANGE = 2
_FALLOC_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_FS_IOC_GETVERSION = 0x80087601
_RACE_RETRIES = 32  # openat2 says EAGAIN when a rename anywhere raced with its walk
_ZEROS = bytes(64 * 1024)

DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO put in the place of a file must not hold the applier for ever. Read too: what is overwritten is kept.
FILE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_root(path: str | os.PathLike[str]) -> int:
    """A descriptor of a replica's root directory; the last component may not be a symbolic link."""
    return os.open(path, DIR_FLAGS)


def open_beneath(root_fd: int, path: bytes, flags: int) -> int:
    """Open ``path`` (``b""``: the root itself) without leaving the root or following any link."""
    if not path:
        return os.open(b".", flags, dir_fd=root_fd)
    how = _OpenHow(flags, 0, _RESOLVE)
    for _ in range(_RACE_RETRIES):
        fd = int(_libc.syscall(_SYS_OPENAT2, root_fd, path, ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG):
            # An old kernel, a seccomp filter, or a path longer than PATH_MAX.
            return walk_beneath(root_fd, path, flags)
        if code not in (errno.EAGAIN, errno.EINTR):
            raise OSError(code, os.strerror(code), path)
    raise OSError(errno.EAGAIN, "the directories above kept moving", path)


def walk_beneath(root_fd: int, path: bytes, flags: int) -> int:
    """The same as ``open_beneath`` component by component, each without following links and on the root's
    file system.
    """
    *parents, last = path.split(b"/")
    device = os.fstat(root_fd).st_dev
    at = root_fd
    try:
        for name in parents:
            below = os.open(_component(name), DIR_FLAGS, dir_fd=at)
            if at != root_fd:
                os.close(at)
            at = below
            if os.fstat(at).st_dev != device:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        return os.open(_component(last), flags | os.O_NOFOLLOW, dir_fd=at)
    finally:
        if at != root_fd:
            os.close(at)


def _component(name: bytes) -> bytes:
    if name in (b"", b".", b".."):
        raise OSError(errno.EXDEV, "not a name beneath the root", name)
    return name


def exchange(src_fd: int, src: bytes, dst_fd: int, dst: bytes) -> None:
    """Swap two names in one step."""
    if _libc.renameat2(src_fd, src, dst_fd, dst, _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), src, None, dst)


def punch(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeros and keep the size; where the file system has no holes, zeros are written."""
    end = min(offset + length, os.fstat(fd).st_size)
    if length == 0 or end <= offset:
        return
    if _libc.fallocate(fd, _FALLOC_PUNCH_HOLE_KEEP_SIZE, offset, end - offset) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    while offset < end:
        offset += os.pwrite(fd, _ZEROS[: end - offset], offset)


def sync_filesystem(fd: int) -> None:
    """Everything written so far to the file system of ``fd`` is on disk when this returns."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def generation(fd: int) -> int:
    """The inode's generation, which changes when an inode number is used again; 0 where the file system tells
    none.
    """
    answer = bytearray(8)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETVERSION, answer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return 0
        raise
    return int(struct.unpack_from("=I", answer)[0])


def identity(fd: int) -> trees.Identity:
    """Who an open file or directory is on this file system."""
    found = os.fstat(fd)
    return trees.Identity(found.st_dev, found.st_ino, generation(fd))


def identity_at(dir_fd: int, name: bytes) -> trees.Identity:
    """The same for what cannot be opened (symbolic links, FIFOs): without a generation."""
    found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return trees.Identity(found.st_dev, found.st_ino, 0)


def kind_of(mode: int) -> trees.Kind | None:
    """The kind of a node by ``st_mode``; None for sockets and devices, which no log names."""
    if stat.S_ISREG(mode):
        return trees.Kind.FILE
    if stat.S_ISDIR(mode):
        return trees.Kind.DIR
    if stat.S_ISLNK(mode):
        return trees.Kind.SYMLINK
    return trees.Kind.FIFO if stat.S_ISFIFO(mode) else None


_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})


def disk_error(error: OSError, doing: str) -> errors.DiffKeeperError:
    """What a failed system call means for the replica it was made for."""
    if error.errno in _ROOM:
        return errors.Transient(
            f"no room on the replica's disk while {doing}; it goes on when there is",
            reason="disk-full",
            hint="free space on the file system of the replica (df -h)",
        )
    if error.errno in _PASSING:
        return errors.Transient(
            f"the machine was short of something while {doing}: {error}; it is tried again",
            reason="out-of-resources",
        )
    if error.errno == errno.EIO:
        return errors.Corrupt(
            f"the disk failed while {doing}: {error}; the replica was left as it is",
            reason="replica-io-error",
            hint="check the disk (dmesg), then rebuild the replica from its journal",
        )
    return errors.Corrupt(
        f"the replica's directory is not as the log left it: {doing} failed with {error}; it was left as "
        "it is",
        reason="replica-differs",
        hint="something else changed the replica; rebuild it from its journal",
    )
