"""Brings a directory backward by its undo records: names, then attributes, then contents of each run, newest first.

What a record says is put in place whatever stands there by now of the ids it names, so doing a run twice gives the
same. Ids that the run touched and that stand wrong go into graves under their number first, deepest first; then the
names of before are laid from the root down, out of graves. So cycles and swaps need no thought, as in ``layout``.
"""

from __future__ import annotations

import os

from diffkeeper.domain import errors, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.graves import Graves, grave_name
from diffkeeper_replicator.handles import DEAD, Handles
from diffkeeper_replicator.naming import Namer
from diffkeeper_replicator.undo_records import OldFile, OldNode, Record

_BLOCK_BYTES = 4096

# (directory id, name, file id)
_Entry = tuple[int, bytes, int]


class Rewinder:
    """Undoes records over one directory; ``close`` after. Tree and identities are changed with it."""

    def __init__(
        self,
        root_fd: int,
        tree: trees.Tree,
        identities: dict[int, trees.Identity],
        graves: Graves,
        *,
        allow_setid: bool,
    ) -> None:
        self._root_fd = root_fd
        self._tree = tree
        self._identities = identities
        self._graves = graves
        self._handles = Handles(root_fd, tree, identities)
        self._names = Namer(tree, identities, self._handles, allow_setid)

    def close(self) -> None:
        self._handles.close()

    def undo(self, record: Record) -> None:
        """Bring the directory from the end of the record's run to its beginning.

        Raises Corrupt ``undo-incomplete`` when a file that the run took away is not kept any more, and what
        ``disk_error`` makes of a failed call. The directory is then somewhere between.
        """
        try:
            if record.born or record.nodes:
                self._restore_names(record)
            self._tree.next_id = record.next_id
            for file_id, name, value in record.xattrs:
                self._names.set_xattr(file_id, name, value)
            start = 0
            for old in record.files:
                start = self._restore_content(old, record.data, start)
        except OSError as error:
            raise safe_paths.disk_error(error, f"going back to {record.span.before.position}") from error

    # -- names -----------------------------------------------------------------------------------------------

    def _restore_names(self, record: Record) -> None:
        nodes = record.nodes
        moved = [
            file_id
            for file_id in (*record.born, *nodes)
            if file_id in self._tree.nodes
            and (file_id not in nodes or self._stands_elsewhere(file_id, nodes[file_id]))
        ]
        right = self._take_away(moved, nodes)
        self._check_graves(nodes)
        self._restore_tree(moved, nodes)
        self._lay(nodes, right)
        for file_id in record.born:
            self._identities.pop(file_id, None)
        self._graves.remove(file_id for file_id in record.born if file_id not in nodes)
        for file_id, old in nodes.items():
            self._names.set_attributes(file_id, {"mode": old.mode, "uid": old.uid, "gid": old.gid})

    def _stands_elsewhere(self, file_id: int, old: OldNode) -> bool:
        return self._tree.nodes[file_id].entries != set(old.entries)

    def _take_away(self, moved: list[int], nodes: dict[int, OldNode]) -> dict[int, tuple[int, bytes]]:
        """Remove every name that was not there before; an id without a right one lies in its grave then.

        Gives one right entry of those that keep one.
        """
        right: dict[int, tuple[int, bytes]] = {}
        going: list[_Entry] = []
        for file_id in moved:
            before = set(nodes[file_id].entries) if file_id in nodes else set()
            for parent, name in sorted(self._tree.nodes[file_id].entries):
                if (parent, name) in before:
                    right[file_id] = (parent, name)
                else:
                    going.append((parent, name, file_id))
        buried: set[int] = set()
        for parent, name, file_id in sorted(going, key=lambda entry: -self._depth(entry[0])):
            dir_fd = self._handles.directory(parent)
            if file_id in right or file_id in buried:
                os.unlink(name, dir_fd=dir_fd)
            else:
                self._graves.bury(file_id, dir_fd, name)
                buried.add(file_id)
        return right

    def _check_graves(self, nodes: dict[int, OldNode]) -> None:
        for file_id in nodes:
            if file_id in self._tree.nodes:
                continue
            identity = self._graves.identity(file_id)
            if identity is None:
                raise errors.Corrupt(
                    f"file id {file_id} was removed and is not kept any more; it cannot be brought back from here",
                    reason="undo-incomplete",
                    hint="the directory can be compared with the journal instead",
                )
            self._identities[file_id] = identity

    def _restore_tree(self, moved: list[int], nodes: dict[int, OldNode]) -> None:
        """The model: first every wrong name out, then every old one in."""
        for file_id in moved:
            self._handles.drop(file_id)
        self._tree.bring_back(
            moved,
            {
                file_id: trees.Node(old.kind, old.mode, old.uid, old.gid, old.target, set(old.entries))
                for file_id, old in nodes.items()
            },
        )

    def _lay(self, nodes: dict[int, OldNode], right: dict[int, tuple[int, bytes]]) -> None:
        entries = sorted(
            ((parent, name, file_id) for file_id, old in nodes.items() for parent, name in old.entries),
            key=lambda entry: self._depth(entry[0]),
        )
        standing: dict[int, tuple[int, bytes]] = dict(right)
        for parent, name, file_id in entries:
            dir_fd = self._handles.directory(parent)
            if self._is_there(dir_fd, name, file_id):
                standing[file_id] = (parent, name)
            elif file_id in standing:
                beside, other = standing[file_id]
                source = self._handles.directory(beside)
                os.link(other, name, src_dir_fd=source, dst_dir_fd=dir_fd, follow_symlinks=False)
            else:
                os.rename(grave_name(file_id), name, src_dir_fd=self._graves.fd, dst_dir_fd=dir_fd)
                standing[file_id] = (parent, name)

    def _is_there(self, dir_fd: int, name: bytes, file_id: int) -> bool:
        try:
            found = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return found.st_ino == self._identities[file_id].inode

    def _depth(self, file_id: int) -> int:
        depth = 0
        while file_id != ROOT_ID:
            file_id = next(iter(self._tree.nodes[file_id].entries))[0]
            depth += 1
        return depth

    # -- content ---------------------------------------------------------------------------------------------

    def _restore_content(self, old: OldFile, data: bytes, start: int) -> int:
        """Size and bytes of one file; gives where the next file's bytes begin in ``data``."""
        fd = self._handles.file(old.file_id)
        assert fd != DEAD, "names came first, so every file of the record lives"
        os.ftruncate(fd, old.size)
        view = memoryview(data)
        for offset, length, zero in zip(old.offsets, old.lengths, old.zeros, strict=True):
            if zero:
                continue
            end = start + length
            while start < end:
                done = os.pwrite(fd, view[start:end], offset)
                start, offset = start + done, offset + done
        for offset, length, zero in zip(old.offsets, old.lengths, old.zeros, strict=True):
            if zero:
                _punch_wide(fd, offset, offset + length, old.size)
        os.utime(fd, ns=(old.mtime_ns, old.mtime_ns))
        return start


def _punch_wide(fd: int, begin: int, end: int, size: int) -> None:
    """Zeros again; and where all of a block around the edge is zero, the block is a hole again too."""
    low, high = begin - begin % _BLOCK_BYTES, -(-end // _BLOCK_BYTES) * _BLOCK_BYTES
    if not any(os.pread(fd, begin - low, low)):
        begin = low
    if not any(os.pread(fd, min(high, size) - end, end)):
        end = high
    _punch(fd, begin, end - begin)


def _punch(fd: int, offset: int, length: int) -> None:
    safe_paths.punch(fd, offset, length)
