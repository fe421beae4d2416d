"""Open descriptors by file id: what makes applying fast, and what notices that something else changed the
replica.

A directory or file is opened beneath the root by the path its id has in the tree, checked against the
identity (device, inode) recorded for the id, and kept open until it is dropped or pushed out by newer ones.
Owned by the applier; not for threads.
"""

from __future__ import annotations

import os
import stat

from diffkeeper.domain import errors, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_replicator import safe_paths

_MAX_FILES = 512
_MAX_DIRS = 256
DEAD = -1


class Handles:
    def __init__(self, root_fd: int, tree: trees.Tree, identities: dict[int, trees.Identity]) -> None:
        self.root_fd = root_fd
        self._tree = tree
        self._identities = identities
        # Read directly by the applier's write loop; only ``file`` adds.
        self.files: dict[int, int] = {}
        self._dirs: dict[int, int] = {}

    def file(self, file_id: int) -> int:
        """A descriptor for writing to a regular file; ``DEAD`` when the id had its last name removed."""
        fd = self.files.get(file_id)
        if fd is not None:
            return fd
        node = self._tree.nodes.get(file_id)
        if node is None:
            if 0 < file_id < self._tree.next_id:
                return DEAD
            raise _contradiction(f"file id {file_id} was never created")
        if node.kind is not trees.Kind.FILE:
            raise _contradiction(f"file id {file_id} has no content")
        fd = self._open(file_id, safe_paths.FILE_FLAGS)
        self.keep_file(file_id, fd)
        return fd

    def keep_file(self, file_id: int, fd: int) -> None:
        if len(self.files) >= _MAX_FILES:
            _close_oldest(self.files)
        self.files[file_id] = fd

    def directory(self, file_id: int) -> int:
        """A descriptor of a directory, for names in it."""
        if file_id == ROOT_ID:
            return self.root_fd
        fd = self._dirs.pop(file_id, None)
        if fd is not None:
            self._dirs[file_id] = fd  # to the young end: a rename needs two at a time
        else:
            node = self._tree.nodes.get(file_id)
            if node is None or node.kind is not trees.Kind.DIR:
                raise _contradiction(f"file id {file_id} is not a directory")
            fd = self._open(file_id, safe_paths.DIR_FLAGS)
            self.keep_directory(file_id, fd)
        return fd

    def keep_directory(self, file_id: int, fd: int) -> None:
        if len(self._dirs) >= _MAX_DIRS:
            _close_oldest(self._dirs)
        self._dirs[file_id] = fd

    def entry(self, file_id: int) -> tuple[int, bytes]:
        """Directory descriptor and name of one entry of ``file_id``, checked to be that file."""
        parent, name = min(self._tree.nodes[file_id].entries)
        dir_fd = self.directory(parent)
        try:
            found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            raise safe_paths.disk_error(error, f"looking up file id {file_id}") from error
        self._check(file_id, found)
        return dir_fd, name

    def drop(self, file_id: int) -> None:
        """Close what is open for an id that is gone or replaced."""
        for cache in (self.files, self._dirs):
            fd = cache.pop(file_id, None)
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """Everything but the root, which belongs to the caller."""
        for cache in (self.files, self._dirs):
            for fd in cache.values():
                os.close(fd)
            cache.clear()

    def _open(self, file_id: int, flags: int) -> int:
        path = self._tree.path(file_id)
        assert path is not None, "a live node has a name"
        try:
            fd = self._open_path(path, flags)
        except OSError as error:
            raise safe_paths.disk_error(error, f"opening file id {file_id}") from error
        try:
            self._check(file_id, os.fstat(fd))
        except errors.DiffKeeperError:
            os.close(fd)
            raise
        return fd

    def _open_path(self, path: bytes, flags: int) -> int:
        try:
            return safe_paths.open_beneath(self.root_fd, path, flags)
        except PermissionError:
            # Without root a file whose mode forbids writing can only be opened by widening the mode for a
            # moment.
            fd = safe_paths.open_beneath(self.root_fd, path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                os.chmod(f"/proc/self/fd/{fd}", mode | 0o700)
                try:
                    return safe_paths.open_beneath(self.root_fd, path, flags)
                finally:
                    os.chmod(f"/proc/self/fd/{fd}", mode)
            finally:
                os.close(fd)

    def _check(self, file_id: int, found: os.stat_result) -> None:
        known = self._identities.get(file_id)
        if known is None or (found.st_dev, found.st_ino) != (known.device, known.inode):
            raise errors.Corrupt(
                f"file id {file_id} is another file in the replica's directory than the one the log made; "
                "nothing was written",
                reason="replica-differs",
                hint="something else changed the replica; rebuild it from its journal",
                expected=known,
                inode=found.st_ino,
            )


def _close_oldest(cache: dict[int, int]) -> None:
    os.close(cache.pop(next(iter(cache))))


def _contradiction(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a delta contradicts the tree: {why}; nothing of it was applied",
        reason="tree-contradiction",
        hint="dkctl verify compares the replica with the log",
    )
