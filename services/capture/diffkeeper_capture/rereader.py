"""The volume's real directory, as the observer may look into it: found by what the shadow says, believed by
inode.

The disk is ahead of the log while records wait, so a path of the shadow may lead nowhere or to something else
by now. Every look therefore compares the inode number of what it opened with the one it expects and raises
``Elsewhere`` when they differ; the caller then waits for the records that explain it, or compares the
directory above. Nothing is opened but directories and regular files, and no symbolic link is followed at the
end of a path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from diffkeeper.domain import errors, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_capture.shadow import Shadow

# How much is read and put into one delta.
CHUNK_BYTES = 256 * 1024

_FS_IOC_GETVERSION = 0x80087601
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: should a FIFO take the file's place between looking and opening, the open must not wait for a
# writer.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_KINDS = {
    stat.S_IFREG: trees.Kind.FILE,
    stat.S_IFDIR: trees.Kind.DIR,
    stat.S_IFLNK: trees.Kind.SYMLINK,
    stat.S_IFIFO: trees.Kind.FIFO,
}


class Elsewhere(Exception):
    """What the shadow has at a path is not there on disk at this moment."""


def kind_of(mode: int) -> trees.Kind | None:
    """None for sockets and devices, which a volume does not keep."""
    return _KINDS.get(stat.S_IFMT(mode))


class Rereader:
    """Looks into one root. Holds one descriptor, of the root directory."""

    def __init__(self, root: Path, shadow: Shadow) -> None:
        self.root = root
        self._shadow = shadow
        try:
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _misconfigured(root, error.strerror or str(error)) from error
        status = os.fstat(self._fd)
        self.device = status.st_dev
        self.inode = status.st_ino

    def close(self) -> None:
        os.close(self._fd)

    def check_root(self) -> None:
        """Raises Misconfigured when the root is gone or another directory stands at its path: never a reason
        to delete.
        """
        try:
            status = os.stat(self.root)
        except OSError as error:
            raise _misconfigured(self.root, error.strerror or str(error)) from error
        if (status.st_dev, status.st_ino) != (self.device, self.inode):
            raise _misconfigured(self.root, "another directory stands there now")

    @contextlib.contextmanager
    def directory(self, file_id: int) -> Iterator[int]:
        """A descriptor of the directory ``file_id``; raises Elsewhere when its path leads to another inode or
        nowhere.
        """
        if file_id == ROOT_ID:
            yield self._fd
            return
        path = self._shadow.tree.path(file_id)
        if path is None:
            raise Elsewhere
        try:
            fd = self._open(path)
        except OSError as error:
            raise Elsewhere from error
        try:
            expected = self._shadow.inode_of.get(file_id)
            status = os.fstat(fd)
            if status.st_dev != self.device or (expected is not None and expected != status.st_ino):
                raise Elsewhere
            if expected is None and self._is_taken(status.st_ino, file_id):
                raise Elsewhere
            yield fd
        finally:
            os.close(fd)

    def _is_taken(self, inode: int, file_id: int) -> bool:
        return self._shadow.by_inode.get(inode, file_id) != file_id

    def _open(self, path: bytes) -> int:
        try:
            return os.open(path, _DIRECTORY, dir_fd=self._fd)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
        # Longer than PATH_MAX: one component at a time.
        at = self._fd
        try:
            for name in path.split(b"/"):
                below = os.open(name, _DIRECTORY, dir_fd=at)
                if at != self._fd:
                    os.close(at)
                at = below
        except OSError:
            if at != self._fd:
                os.close(at)
            raise
        return at

    def look(self, parent: int, name: bytes) -> os.stat_result | None:
        """``lstat`` of an entry, None when there is none; raises Elsewhere when its directory is not where it
        should be.
        """
        with self.directory(parent) as fd:
            try:
                return os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                    return None
                raise

    def status_of(self, file_id: int) -> os.stat_result:
        """``lstat`` of an id by any of its names; raises Elsewhere when none leads to its inode."""
        if file_id == ROOT_ID:
            return os.fstat(self._fd)
        expected = self._shadow.inode_of.get(file_id)
        node = self._shadow.tree.nodes.get(file_id)
        for parent, name in sorted(node.entries) if node is not None else ():
            with contextlib.suppress(Elsewhere):
                status = self.look(parent, name)
                if status is not None and status.st_ino == expected:
                    return status
        raise Elsewhere

    @contextlib.contextmanager
    def file(self, file_id: int) -> Iterator[int]:
        """A descriptor of a regular file by any of its names; raises Elsewhere when none leads to its
        inode.
        """
        expected = self._shadow.inode_of.get(file_id)
        node = self._shadow.tree.nodes.get(file_id)
        for parent, name in sorted(node.entries) if node is not None else ():
            try:
                with self.directory(parent) as directory:
                    fd = open_file(directory, name, expected)
            except Elsewhere:
                continue
            try:
                yield fd
            finally:
                os.close(fd)
            return
        raise Elsewhere

    def xattr(self, file_id: int, name: bytes) -> bytes | None:
        """The value of an extended attribute, None when there is none; raises Elsewhere like
        ``status_of``.
        """
        node = self._shadow.tree.nodes.get(file_id)
        if file_id == ROOT_ID:
            return _get_xattr(self._fd, name)
        for parent, entry in sorted(node.entries) if node is not None else ():
            with contextlib.suppress(Elsewhere, FileNotFoundError), self.directory(parent) as fd:
                status = os.stat(entry, dir_fd=fd, follow_symlinks=False)
                if self._shadow.inode_of.get(file_id) == status.st_ino:
                    return _get_xattr(b"/proc/self/fd/%d/%s" % (fd, entry), name)
        raise Elsewhere


def open_file(directory: int, name: bytes, expected: int | None) -> int:
    """Open a regular file in a directory; raises Elsewhere when it is not one, or not inode ``expected``."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or expected not in (None, status.st_ino):
            raise Elsewhere
        fd = os.open(name, FILE_FLAGS, dir_fd=directory)
    except OSError as error:
        raise Elsewhere from error
    opened = os.fstat(fd)
    if opened.st_ino != status.st_ino or not stat.S_ISREG(opened.st_mode):
        os.close(fd)
        raise Elsewhere
    return fd


def generation_of(fd: int) -> int:
    """The inode generation of an open file, 0 where the file system has none to tell."""
    buffer = bytearray(8)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETVERSION, buffer)
    except OSError:
        return 0
    generation: int = struct.unpack_from("<I", buffer)[0]
    return generation


def next_data(fd: int, at: int, end: int) -> tuple[int, int]:
    """The next extent of data at or after ``at``: (start, end), both ``end`` when only a hole is left before
    it.
    """
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        if start >= end:
            return end, end
        return start, min(end, os.lseek(fd, start, os.SEEK_HOLE))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end, end
        # A file system without SEEK_DATA: everything is data.
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return at, end
        raise


def read_range(fd: int, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) in chunks until ``length`` or the end of the file."""
    end = offset + length
    while offset < end:
        data = os.pread(fd, min(CHUNK_BYTES, end - offset), offset)
        if not data:
            return
        yield offset, data
        offset += len(data)


def list_xattrs(directory: int, name: bytes) -> dict[bytes, bytes]:
    """Extended attributes worth keeping, of an entry that may be a symbolic link (which is not followed)."""
    return _xattrs(b"/proc/self/fd/%d/%s" % (directory, name))


def xattrs_of(fd: int) -> dict[bytes, bytes]:
    """The same of an open file."""
    return _xattrs(fd)


def _xattrs(target: int | bytes) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(target, follow_symlinks=isinstance(target, int))
    except OSError:
        return {}
    found: dict[bytes, bytes] = {}
    for text in names:
        key = os.fsencode(text)
        if _is_kept(key):
            value = _get_xattr(target, key)
            if value is not None:
                found[key] = value
    return found


def _is_kept(name: bytes) -> bool:
    """Labels of a local policy (security.selinux and the like) mean nothing on another machine."""
    return name.startswith((b"user.", b"system.posix_acl_")) or name == b"security.capability"


def _get_xattr(target: int | bytes, name: bytes) -> bytes | None:
    try:
        return os.getxattr(target, name, follow_symlinks=isinstance(target, int))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT, errno.EOPNOTSUPP, errno.ENOTDIR):
            return None
        raise


def _misconfigured(root: Path, why: str) -> errors.Misconfigured:
    return errors.Misconfigured(
        f"the directory {root} of a volume is missing or was replaced ({why}); nothing was deleted anywhere",
        reason="root-missing",
        hint="mount it again or put it back, then attach the volume again",
        path=str(root),
    )
