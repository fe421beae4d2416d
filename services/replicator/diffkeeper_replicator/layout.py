"""Brings about the names of a tree in a directory where files are known by their inodes only.

What stands right stays; a known file that stands wrong is put aside under its id, in a directory beside the
replica; what no id lays claim to is removed; then the tree is laid from the root down, from what was put
aside and what is made anew. Cycles and swaps of directories come out right because nothing is moved from one
wrong place to another.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from diffkeeper.domain import errors, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.graves import Graves
from diffkeeper_replicator.handles import Handles
from diffkeeper_replicator.naming import Namer


@dataclass(slots=True)
class _Walk:
    """A directory being walked: its descriptor, id (None: unknown, or the put-aside one), name in the one
    above, entries left.
    """

    fd: int
    file_id: int | None
    name: bytes
    names: list[bytes]


class Layout:
    """One run over the names of a replica. Every id in ``identities`` lives in ``tree``; those that are not
    there are made.
    """

    def __init__(
        self,
        root: Path,
        root_fd: int,
        tree: trees.Tree,
        identities: dict[int, trees.Identity],
        *,
        allow_setid: bool,
        dying: dict[int, int] | None = None,
        graves: Graves | None = None,
    ) -> None:
        self._root_fd = root_fd
        # Inode → id of files that the log removes and that are kept in ``graves``.
        self._dying = dying or {}
        self._graves = graves
        self._tree = tree
        self._identities = identities
        self._device = os.fstat(root_fd).st_dev
        self._by_inode = {identity.inode: file_id for file_id, identity in identities.items()}
        # Ids that stand in the put-aside directory under their number.
        self._aside: set[int] = set()
        # (directory id, name) of entries that stand right.
        self._right: set[tuple[int, bytes]] = set()
        self._handles = Handles(root_fd, tree, identities)
        self._names = Namer(tree, identities, self._handles, allow_setid)
        self._mode_mask = 0o7777 if allow_setid else 0o1777
        self._owners = os.geteuid() == 0
        self._aside_path = _aside_path(root, self._device)
        self._aside_fd = -1
        self._aside_inode = 0

    def __enter__(self) -> Layout:
        self._aside_path.mkdir(mode=0o700, exist_ok=True)
        self._aside_fd = safe_paths.open_root(self._aside_path)
        self._aside_inode = os.fstat(self._aside_fd).st_ino
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handles.close()
        os.close(self._aside_fd)

    @staticmethod
    def aside_inodes(root: Path, root_fd: int) -> set[int]:
        """Of what an earlier run that was cut off has put aside."""
        path = _aside_path(root, os.fstat(root_fd).st_dev)
        if not path.is_dir():
            return set()
        with os.scandir(path) as entries:
            return {entry.inode() for entry in entries}

    def bring_about(self) -> None:
        """Lay every name. Raises Corrupt, with nothing changed, when a file that must be there is not."""
        try:
            self._check_all_there()
            self._take_aside()
            self._walk(self._aside_fd, None)
            self._walk(self._root_fd, ROOT_ID)
            self._lay()
        except OSError as error:
            raise safe_paths.disk_error(error, "bringing about the names of the replica") from error

    def finish(self) -> None:
        """Modes and owners, and away with the put-aside directory. After the contents: they may need rights
        that these take.
        """
        try:
            for parent, name, file_id in reversed(self._entries()):
                self._set_attributes(self._handles.directory(parent), name, self._tree.nodes[file_id])
            self._set_attributes(self._root_fd, b".", self._tree.nodes[ROOT_ID])
            for left in os.listdir(self._aside_fd):
                os.unlink(left, dir_fd=self._aside_fd)  # one more name of a file with many
            self._aside_path.rmdir()
        except OSError as error:
            raise safe_paths.disk_error(error, "finishing the names of the replica") from error

    # -- looking ---------------------------------------------------------------------------------------------

    def _check_all_there(self) -> None:
        missing = {identity.inode for identity in self._identities.values()}
        missing.discard(os.fstat(self._root_fd).st_ino)
        for top in (self._root_fd, self._aside_fd):
            stack = [_Walk(os.dup(top), None, b"", _names(top))]
            while stack:
                walk = stack[-1]
                if not walk.names:
                    os.close(stack.pop().fd)
                    continue
                name = walk.names.pop()
                found = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
                if self._is_it(walk.fd, name, found):
                    missing.discard(found.st_ino)
                if stat.S_ISDIR(found.st_mode) and self._goes_into(found):
                    stack.append(self._open(walk, name, None, found))
        if missing:
            raise errors.Corrupt(
                f"{len(missing)} files are gone from the replica's directory that the log did not remove; "
                "it was left as it is",
                reason="replica-differs",
                hint="something else changed the replica; rebuild it from its journal",
                missing=len(missing),
            )

    def _is_it(self, dir_fd: int, name: bytes, found: os.stat_result) -> bool:
        """Whether an inode is still the file that was known under its number, and not a younger one."""
        file_id = self._by_inode.get(found.st_ino)
        if file_id is None or self._tree.nodes[file_id].kind is not safe_paths.kind_of(found.st_mode):
            return False
        generation = self._identities[file_id].generation
        if generation == 0:
            return True
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
        except PermissionError:
            return True
        try:
            return safe_paths.generation(fd) == generation
        finally:
            os.close(fd)

    def _goes_into(self, found: os.stat_result) -> bool:
        if found.st_dev != self._device:
            raise errors.Corrupt(
                "another file system is mounted inside the replica's directory; it was left as it is",
                reason="mount-in-replica",
                hint="unmount it",
            )
        return found.st_ino != self._aside_inode

    def _open(self, above: _Walk, name: bytes, file_id: int | None, found: os.stat_result) -> _Walk:
        if not self._owners and found.st_mode & 0o700 != 0o700:
            path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.fd)
            os.chmod(f"/proc/self/fd/{path_fd}", stat.S_IMODE(found.st_mode) | 0o700)
            os.close(path_fd)
        fd = os.open(name, safe_paths.DIR_FLAGS, dir_fd=above.fd)
        return _Walk(fd, file_id, name, _names(fd))

    # -- putting aside ---------------------------------------------------------------------------------------

    def _take_aside(self) -> None:
        """What an earlier run that was cut off has put aside, before anything is walked: a directory that stands there
        may hold one more name of a file that stands there too, and a rename of a file onto itself does nothing.
        """
        for name in _names(self._aside_fd):
            file_id = self._known(os.stat(name, dir_fd=self._aside_fd, follow_symlinks=False))
            if file_id is not None and name == str(file_id).encode():
                self._aside.add(file_id)

    def _walk(self, top_fd: int, top_id: int | None) -> None:
        """All below, deepest first: keep what stands right, put known ids aside, remove the rest."""
        stack = [_Walk(os.dup(top_fd), top_id, b"", _names(top_fd))]
        while stack:
            walk = stack[-1]
            if not walk.names:
                stack.pop()
                os.close(walk.fd)
                if stack:
                    self._leave(stack[-1], walk.name, walk.file_id, is_dir=True)
                continue
            name = walk.names.pop()
            found = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
            file_id = self._known(found)
            if not stat.S_ISDIR(found.st_mode):
                self._leave(walk, name, file_id, is_dir=False)
            elif self._goes_into(found):
                stack.append(self._open(walk, name, file_id, found))

    def _known(self, found: os.stat_result) -> int | None:
        file_id = self._by_inode.get(found.st_ino)
        if file_id is None or self._tree.nodes[file_id].kind is not safe_paths.kind_of(found.st_mode):
            return None
        return file_id

    def _bury(self, dir_fd: int, name: bytes) -> bool:
        """Whether the entry is of a file that was being removed, and went where it is kept."""
        if not self._dying:
            return False
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        file_id = self._dying.pop(found.st_ino, None)
        if file_id is None or self._graves is None or self._graves.has(file_id):
            return False
        self._graves.bury(file_id, dir_fd, name)
        return True

    def _leave(self, walk: _Walk, name: bytes, file_id: int | None, *, is_dir: bool) -> None:
        """The last word on an entry whose own entries, if any, have been dealt with."""
        if file_id is None:
            if not self._bury(walk.fd, name):
                (os.rmdir if is_dir else os.unlink)(name, dir_fd=walk.fd)
            return
        number = str(file_id).encode()
        if name == number and os.fstat(walk.fd).st_ino == self._aside_inode:
            return
        if walk.file_id is not None and self._tree.child(walk.file_id, name) == file_id:
            self._right.add((walk.file_id, name))
            if len(self._tree.nodes[file_id].entries) > 1 and file_id not in self._aside:
                # Its other names are made from this one.
                os.link(name, number, src_dir_fd=walk.fd, dst_dir_fd=self._aside_fd, follow_symlinks=False)
                self._aside.add(file_id)
        elif file_id not in self._aside:
            os.rename(name, number, src_dir_fd=walk.fd, dst_dir_fd=self._aside_fd)
            self._aside.add(file_id)
        else:
            os.unlink(name, dir_fd=walk.fd)

    # -- laying ----------------------------------------------------------------------------------------------

    def _entries(self) -> list[tuple[int, bytes, int]]:
        """(directory id, name, id) of every entry of the tree, directories before what is in them."""
        entries: list[tuple[int, bytes, int]] = []
        waiting = [ROOT_ID]
        while waiting:
            parent = waiting.pop()
            for name, file_id in self._tree.nodes[parent].children.items():
                entries.append((parent, name, file_id))
                if self._tree.nodes[file_id].kind is trees.Kind.DIR:
                    waiting.append(file_id)
        return entries

    def _lay(self) -> None:
        for parent, name, file_id in self._entries():
            if (parent, name) in self._right:
                continue
            dir_fd = self._handles.directory(parent)
            number = str(file_id).encode()
            many = len(self._tree.nodes[file_id].entries) > 1
            if file_id not in self._aside:
                self._make(file_id, dir_fd, name)
                if many:
                    os.link(name, number, src_dir_fd=dir_fd, dst_dir_fd=self._aside_fd, follow_symlinks=False)
                    self._aside.add(file_id)
            elif many:
                os.link(number, name, src_dir_fd=self._aside_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            else:
                os.rename(number, name, src_dir_fd=self._aside_fd, dst_dir_fd=dir_fd)

    def _make(self, file_id: int, dir_fd: int, name: bytes) -> None:
        match self._tree.nodes[file_id].kind:
            case trees.Kind.FILE:
                self._names.create(file_id, dir_fd, name)
            case trees.Kind.SYMLINK:
                self._names.symlink(file_id, dir_fd, name)
            case trees.Kind.FIFO:
                self._names.mkfifo(file_id, dir_fd, name)
            case trees.Kind.DIR:
                self._names.mkdir(file_id, dir_fd, name)
                os.fchmod(self._handles.directory(file_id), 0o700)  # until ``finish``

    def _set_attributes(self, dir_fd: int, name: bytes, node: trees.Node) -> None:
        found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if self._owners and (found.st_uid, found.st_gid) != (node.uid, node.gid):
            os.chown(name, node.uid, node.gid, dir_fd=dir_fd, follow_symlinks=False)
        wanted = node.mode & self._mode_mask
        if node.kind is not trees.Kind.SYMLINK and stat.S_IMODE(found.st_mode) != wanted:
            path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
            try:
                os.chmod(f"/proc/self/fd/{path_fd}", wanted)
            finally:
                os.close(path_fd)


def _names(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def _aside_path(root: Path, device: int) -> Path:
    """Beside the replica; inside it where it is a mount point of its own, since a rename cannot leave a file
    system.
    """
    if os.stat(root.parent).st_dev == device and not os.path.ismount(root):
        return root.parent / f".{root.name}.aside"
    return root / ".diffkeeper-aside"
