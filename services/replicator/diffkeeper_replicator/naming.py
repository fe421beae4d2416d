"""Names and attributes on disk: creates, renames, links, removals, modes, owners, extended attributes.

Every operation is on one name in one open directory, never on a path, and follows no symbolic link. Owners
are set only by root. Set-id bits and privileged extended attributes are left out unless allowed.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from diffkeeper.domain import errors, trees
from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.graves import Graves
from diffkeeper_replicator.handles import DEAD, Handles

_SETID_BITS = 0o6000
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# The other namespaces give rights on this machine (security.capability) or belong to it (trusted).
_XATTR_ALLOWED = (b"user.", b"system.posix_acl_")
_XATTR_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.E2BIG, errno.ERANGE, errno.EINVAL})


@dataclass(frozen=True, slots=True)
class Prepared:
    """A naming delta that is about to be done: its directories, and the id whose last name it may take."""

    delta: Delta
    parents: list[int]
    replaced: int | None


class Namer:
    def __init__(
        self, tree: trees.Tree, identities: dict[int, trees.Identity], handles: Handles, allow_setid: bool
    ) -> None:
        self._tree = tree
        self._identities = identities
        self._handles = handles
        self._mode_mask = 0o7777 if allow_setid else 0o7777 & ~_SETID_BITS
        self._owners = os.geteuid() == 0
        # Where files go whose last name is taken; ids from ``keep_below`` on are not kept: nothing leads back to them.
        self.graves: Graves | None = None
        self.keep_below = 0

    def prepare(self, delta: Delta) -> Prepared:
        """What must be looked up before the tree changes. Changes nothing; raises Transient or Corrupt."""
        # A directory is never moved into itself, so these descriptors stay right after the change.
        parents = [self._handles.directory(parent) for parent in _parents(delta)]
        replaced: int | None = None
        if delta.op is Op.RENAME:
            replaced = self._tree.child(delta.args[2], delta.args[3])
        elif delta.op in (Op.UNLINK, Op.RMDIR):
            replaced = delta.file_id
        return Prepared(delta, parents, replaced)

    def perform(self, prepared: Prepared) -> None:
        """The change on disk, once the tree has taken it."""
        delta, replaced = prepared.delta, prepared.replaced
        try:
            self._on_disk(delta, prepared.parents, self._dying(replaced))
        except OSError as error:
            raise safe_paths.disk_error(
                error, f"{delta.op.name.lower()} of file id {delta.file_id}"
            ) from error
        if replaced is not None and replaced not in self._tree.nodes:
            self._handles.drop(replaced)
            self._identities.pop(replaced, None)

    def _dying(self, file_id: int | None) -> int | None:
        """The id, when it has lost its last name and is to be kept."""
        if file_id is None or self.graves is None or file_id >= self.keep_below:
            return None
        return None if file_id in self._tree.nodes else file_id

    def _on_disk(self, delta: Delta, parents: list[int], dying: int | None) -> None:
        args, file_id, parent = delta.args, delta.file_id, parents[0]
        match delta.op:
            case Op.CREATE:
                self.create(file_id, parent, args[1])
            case Op.MKDIR:
                self.mkdir(file_id, parent, args[1])
            case Op.SYMLINK:
                self.symlink(file_id, parent, args[1])
            case Op.MKFIFO:
                self.mkfifo(file_id, parent, args[1])
            case Op.LINK:
                self._link(file_id, parent, args[1])
            case Op.UNLINK | Op.RMDIR if dying is not None and self.graves is not None:
                self.graves.bury(dying, parent, args[1])
            case Op.UNLINK:
                os.unlink(args[1], dir_fd=parent)
            case Op.RMDIR:
                os.rmdir(args[1], dir_fd=parent)
            case Op.RENAME if args[4]:
                safe_paths.exchange(parent, args[1], parents[1], args[3])
            case Op.RENAME:
                if dying is not None and self.graves is not None:
                    # A directory has no second name, so for a moment it has none.
                    is_dir = self._tree.nodes[file_id].kind is trees.Kind.DIR
                    (self.graves.bury if is_dir else self.graves.link)(dying, parents[1], args[3])
                os.rename(args[1], args[3], src_dir_fd=parent, dst_dir_fd=parents[1])

    # -- making what the tree has and the disk lacks; also used by reconcile ---------------------------------

    def create(self, file_id: int, dir_fd: int, name: bytes) -> None:
        fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=dir_fd)
        self._own(fd, self._tree.nodes[file_id])
        self._identities[file_id] = safe_paths.identity(fd)
        self._handles.keep_file(file_id, fd)

    def mkdir(self, file_id: int, dir_fd: int, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
        fd = os.open(name, safe_paths.DIR_FLAGS, dir_fd=dir_fd)
        self._own(fd, self._tree.nodes[file_id])
        self._identities[file_id] = safe_paths.identity(fd)
        self._handles.keep_directory(file_id, fd)

    def symlink(self, file_id: int, dir_fd: int, name: bytes) -> None:
        node = self._tree.nodes[file_id]
        os.symlink(node.target, name, dir_fd=dir_fd)
        if self._owners:
            os.chown(name, node.uid, node.gid, dir_fd=dir_fd, follow_symlinks=False)
        self._identities[file_id] = safe_paths.identity_at(dir_fd, name)

    def mkfifo(self, file_id: int, dir_fd: int, name: bytes) -> None:
        os.mkfifo(name, 0o600, dir_fd=dir_fd)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            self._own_path(fd, self._tree.nodes[file_id])
        finally:
            os.close(fd)
        self._identities[file_id] = safe_paths.identity_at(dir_fd, name)

    def _link(self, file_id: int, dir_fd: int, name: bytes) -> None:
        # Of its entries the new one is not on disk yet, so another one is taken.
        for other_parent, other in sorted(self._tree.nodes[file_id].entries):
            source = self._handles.directory(other_parent)
            if (source, other) == (dir_fd, name):
                continue
            os.link(other, name, src_dir_fd=source, dst_dir_fd=dir_fd, follow_symlinks=False)
            made = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if made.st_ino != self._identities[file_id].inode:
                os.unlink(name, dir_fd=dir_fd)
                raise OSError(errno.ESTALE, "another file stands under its name", other)
            return
        raise AssertionError("a file that gets one more name has one")

    # -- attributes ------------------------------------------------------------------------------------------

    def set_attributes(self, file_id: int, attrs: dict[str, int]) -> None:
        """Attributes of an id that may be dead; the tree has them afterwards."""
        node = self._tree.nodes.get(file_id)
        if node is None and file_id < self._tree.next_id:
            return
        self._tree.apply(Delta(Op.ATTR, file_id, args=(attrs,)))
        node = self._tree.nodes[file_id]
        if node.kind in (trees.Kind.SYMLINK, trees.Kind.FIFO):
            self._set_unopened(file_id, node, attrs)
            return
        fd = self._descriptor(file_id, node)
        if attrs.keys() & {"mode", "uid", "gid"}:
            self._own(fd, node)
        if attrs.keys() & {"atime_ns", "mtime_ns"}:
            _set_times(fd, os.fstat(fd), attrs)

    def _set_unopened(self, file_id: int, node: trees.Node, attrs: dict[str, int]) -> None:
        dir_fd, name = self._handles.entry(file_id)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        try:
            found = os.fstat(fd)
            if found.st_ino != self._identities[file_id].inode:
                raise OSError(errno.ESTALE, "another file stands under its name", name)
            if node.kind is trees.Kind.FIFO:
                self._own_path(fd, node)
            elif self._owners:
                os.chown(name, node.uid, node.gid, dir_fd=dir_fd, follow_symlinks=False)
            if attrs.keys() & {"atime_ns", "mtime_ns"}:
                times = (attrs.get("atime_ns", found.st_atime_ns), attrs.get("mtime_ns", found.st_mtime_ns))
                os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False)
        finally:
            os.close(fd)

    def set_xattr(self, file_id: int, name: bytes, value: bytes | None) -> str:
        """Set or remove; a note why not when this file system or the rules do not take it, else an empty
        text.
        """
        node = self._tree.nodes.get(file_id)
        if node is None:
            if file_id < self._tree.next_id:
                return ""
            raise errors.Corrupt(
                f"an attribute for file id {file_id}, never created", reason="tree-contradiction"
            )
        if not name.startswith(_XATTR_ALLOWED) or b"\0" in name:
            return "xattr-not-allowed"
        if node.kind in (trees.Kind.SYMLINK, trees.Kind.FIFO):
            return "xattr-unsupported"
        fd = self._descriptor(file_id, node)
        try:
            if value is not None:
                os.setxattr(fd, name, value)
            else:
                os.removexattr(fd, name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return ""
            if error.errno in _XATTR_UNSUPPORTED:
                return "xattr-unsupported"
            raise
        return ""

    def _descriptor(self, file_id: int, node: trees.Node) -> int:
        if node.kind is trees.Kind.DIR:
            return self._handles.directory(file_id)
        fd = self._handles.file(file_id)
        assert fd != DEAD, "the caller has asked the tree"
        return fd

    def _own(self, fd: int, node: trees.Node) -> None:
        if self._owners:
            os.fchown(fd, node.uid, node.gid)  # before the mode: it clears set-id bits
        os.fchmod(fd, node.mode & self._mode_mask)

    def _own_path(self, path_fd: int, node: trees.Node) -> None:
        """The same through a descriptor opened with O_PATH."""
        if self._owners:
            os.chown(f"/proc/self/fd/{path_fd}", node.uid, node.gid)
        os.chmod(f"/proc/self/fd/{path_fd}", node.mode & self._mode_mask)


def _set_times(fd: int, found: os.stat_result, attrs: dict[str, int]) -> None:
    os.utime(fd, ns=(attrs.get("atime_ns", found.st_atime_ns), attrs.get("mtime_ns", found.st_mtime_ns)))


def _parents(delta: Delta) -> tuple[int, ...]:
    return (delta.args[0], delta.args[2]) if delta.op is Op.RENAME else (delta.args[0],)
