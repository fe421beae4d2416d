"""Files whose last name the log took away, kept whole beside the replica as long as undo records may need them.

A grave is the file itself, moved: no byte is copied. It stands under its id in a directory on the replica's own file
system, beside it; where there is none (the replica is a mount point) nothing is buried, and undo ends at such a run.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from diffkeeper.domain import trees
from diffkeeper_replicator import safe_paths

_OCCUPIED = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY})


class Graves:
    def __init__(self, root: Path) -> None:
        self.path = root.parent / f".{root.name}.undo"
        self._fd = -1

    @staticmethod
    def possible(root: Path) -> bool:
        return os.stat(root.parent).st_dev == os.stat(root).st_dev and not os.path.ismount(root)

    @property
    def fd(self) -> int:
        if self._fd < 0:
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._fd = safe_paths.open_root(self.path)
        return self._fd

    def bury(self, file_id: int, dir_fd: int, name: bytes) -> None:
        """The entry becomes the grave of ``file_id``. Again, after it was done, does nothing."""
        try:
            self._replace(
                file_id,
                lambda grave: os.rename(name, grave, src_dir_fd=dir_fd, dst_dir_fd=self.fd),
            )
        except FileNotFoundError:
            if not self.has(file_id):
                raise

    def link(self, file_id: int, dir_fd: int, name: bytes) -> None:
        """The same where the entry is about to be replaced in one step."""
        self._replace(
            file_id,
            lambda grave: os.link(name, grave, src_dir_fd=dir_fd, dst_dir_fd=self.fd, follow_symlinks=False),
        )

    def has(self, file_id: int) -> bool:
        try:
            os.stat(grave_name(file_id), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def identity(self, file_id: int) -> trees.Identity | None:
        """Who lies there; None when nobody does."""
        name = grave_name(file_id)
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return safe_paths.identity_at(self.fd, name)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.fd)
        try:
            return safe_paths.identity(fd)
        finally:
            os.close(fd)

    def remove(self, ids: Iterable[int]) -> None:
        for file_id in ids:
            self._clear(file_id)

    def size_bytes(self) -> int:
        """What they take on disk."""
        if not self.path.exists():
            return 0
        with os.scandir(self.path) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)

    def clear(self) -> None:
        """Remove all of them."""
        self.close()
        if self.path.exists():
            shutil.rmtree(self.path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def keep_only(self, ids: Container[int]) -> None:
        """Remove those that no record names."""
        if self.path.exists():
            self.remove(int(name) for name in os.listdir(self.path) if int(name) not in ids)

    def _replace(self, file_id: int, put: Callable[[bytes], None]) -> None:
        """Put something into a grave, in the place of one that was left there."""
        try:
            put(grave_name(file_id))
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
            self._clear(file_id)
            put(grave_name(file_id))

    def _clear(self, file_id: int) -> None:
        """A grave has no entries below it: a directory is empty when it loses its name."""
        name = grave_name(file_id)
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            os.rmdir(name, dir_fd=self.fd)


def grave_name(file_id: int) -> bytes:
    return str(file_id).encode()
