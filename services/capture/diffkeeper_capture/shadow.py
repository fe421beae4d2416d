"""What the log says the volume is, at the position reached so far: the tree, and which inode each file id is.

Every change of a name goes through here, so that tree, log and inode maps cannot differ: the tree takes the
delta first (and refuses what cannot be), then the sink gets it, then the maps follow. A volume is one file
system, so the key is the inode number; the generation is kept beside it where it is known. Nothing here
touches a disk.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

from blake3 import blake3

from diffkeeper.domain import deltas, trees
from diffkeeper.domain.deltas import FIRST_FREE_ID, ROOT_ID, Delta, Op
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.working_tree import WorkingTree

# Names under which entries wait while a comparison finds out where they went. Too odd to be anybody's own.
PARKED = b".diffkeeper-parked-%d"

_DIGEST_BYTES = 16

_OP_OF = {
    trees.Kind.FILE: Op.CREATE,
    trees.Kind.DIR: Op.MKDIR,
    trees.Kind.FIFO: Op.MKFIFO,
    trees.Kind.SYMLINK: Op.SYMLINK,
}


class Shadow:
    """Not safe for threads; one owner."""

    __slots__ = (
        "by_inode",
        "content_changes",
        "generation_of",
        "guessed",
        "inode_of",
        "on_forget",
        "on_unbind",
        "sink",
        "touched",
        "tree",
        "unmapped",
        "unverified",
        "xattrs",
    )

    def __init__(self, sink: FrameSink, tree: trees.Tree | None = None) -> None:
        self.sink = sink
        self.tree = trees.Tree() if tree is None else tree
        self.by_inode: MutableMapping[int, int]
        self.inode_of: MutableMapping[int, int]
        self.generation_of: MutableMapping[int, int]
        # Invariant: of the ids in the tree, exactly those in ``unmapped`` have no entry in ``inode_of``.
        self.unmapped: set[int]
        if isinstance(self.tree, WorkingTree):
            self.by_inode, self.inode_of = self.tree.by_inode, self.tree.inode_of
            self.generation_of = self.tree.generation_of
            self.unmapped = self.tree.unidentified()
        else:
            self.by_inode, self.inode_of, self.generation_of = {}, {}, {}
            self.unmapped = set(self.tree.nodes)
        # Ids whose inode was looked up after their call: something else may have taken the name by then.
        self.guessed: set[int] = set()
        # Ids whose mode and owner were guessed, because they were not there any more when they were looked
        # at.
        self.unverified: set[int] = set()
        # Ids whose inode, or what is known of it, changed since somebody last emptied this.
        self.touched: set[int] = set()
        # Digests of the values of extended attributes that were logged since this shadow was begun.
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        # How many deltas of content went through here; records of writes pass by.
        self.content_changes = 0
        # Called with an id whose last name is gone, while its inode is still known.
        self.on_forget: list[Callable[[int], None]] = []
        # Called when an inode does not stand for its id any more.
        self.on_unbind: list[Callable[[], None]] = []

    def is_directory(self, file_id: int) -> bool:
        node = self.tree.nodes.get(file_id)
        return node is not None and node.kind is trees.Kind.DIR

    def is_file(self, file_id: int) -> bool:
        node = self.tree.nodes.get(file_id)
        return node is not None and node.kind is trees.Kind.FILE

    def bind(self, file_id: int, inode: int, generation: int = 0) -> int | None:
        """``inode`` is ``file_id`` from now on; the id that had it before, if another one did, is left
        unmapped.
        """
        before = self.by_inode.get(inode)
        if before == file_id:
            if generation:
                self.generation_of[file_id] = generation
            return None
        if file_id in self.inode_of:
            self.unbind(file_id)
        if before is not None:
            self.unbind(before)
        self.by_inode[inode] = file_id
        self.inode_of[file_id] = inode
        self.touched.add(file_id)
        self.unmapped.discard(file_id)
        if generation:
            self.generation_of[file_id] = generation
        return before

    def is_generation(self, file_id: int, generation: int) -> bool:
        """Whether an id may be the file of this generation, which is remembered if none was; 0 is not known."""
        return not generation or self.generation_of.setdefault(file_id, generation) == generation

    def unbind(self, file_id: int) -> None:
        self.touched.add(file_id)
        inode = self.inode_of.pop(file_id, None)
        if inode is not None:
            del self.by_inode[inode]
            for tell in self.on_unbind:
                tell()
        self.generation_of.pop(file_id, None)
        self.guessed.discard(file_id)
        if file_id in self.tree.nodes:
            self.unmapped.add(file_id)

    def make(
        self,
        kind: trees.Kind,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        at_us: int,
        target: bytes = b"",
    ) -> int:
        """A new id under an entry; raises Corrupt, and changes nothing, when the entry is taken or has no
        directory.
        """
        file_id = max(self.tree.next_id, FIRST_FREE_ID)
        what = target if kind is trees.Kind.SYMLINK else mode & 0o7777
        self._put(Delta(_OP_OF[kind], file_id, args=(parent, name, what, uid, gid), at_us=at_us))
        self.unmapped.add(file_id)
        self.touched.add(file_id)
        return file_id

    def link(self, file_id: int, parent: int, name: bytes, at_us: int) -> None:
        self._put(Delta(Op.LINK, file_id, args=(parent, name), at_us=at_us))

    def remove(self, parent: int, name: bytes, at_us: int) -> int | None:
        """Take one name away (of a directory only when it is empty); the id when that was its last name."""
        file_id = self.tree.child(parent, name)
        op = Op.RMDIR if file_id is not None and self.is_directory(file_id) else Op.UNLINK
        self._put(Delta(op, file_id or 0, args=(parent, name), at_us=at_us))
        assert file_id is not None, "the tree refuses to unlink what it does not have"
        return self._forget_if_gone(file_id)

    def remove_tree(self, parent: int, name: bytes, at_us: int) -> None:
        """Take one name and all below it away, bottom-up. Depth is not bounded, so neither is this
        recursive.
        """
        stack = [(parent, name)]
        while stack:
            directory, entry = stack[-1]
            file_id = self.tree.child(directory, entry)
            below = self.tree.nodes[file_id].children if file_id is not None else {}
            if below:
                assert file_id is not None
                stack.extend((file_id, child) for child in sorted(below, reverse=True))
            else:
                stack.pop()
                self.remove(directory, entry, at_us)

    def rename(
        self, source: tuple[int, bytes], target: tuple[int, bytes], at_us: int, exchange: bool = False
    ) -> None:
        """Move a name; what stood at the target is replaced or, with ``exchange``, moved back."""
        file_id = self.tree.child(*source)
        replaced = self.tree.child(*target)
        self._put(Delta(Op.RENAME, file_id or 0, args=(*source, *target, exchange), at_us=at_us))
        if replaced is not None:
            self._forget_if_gone(replaced)

    def change_attributes(self, file_id: int, changes: dict[str, int], at_us: int) -> None:
        if changes:
            self._put(Delta(Op.ATTR, file_id, args=(changes,), at_us=at_us))

    def change_xattr(self, file_id: int, name: bytes, value: bytes | None, at_us: int) -> bool:
        """Log a value, or None for none; False when the log has that value already."""
        there = self.xattrs.setdefault(file_id, {})
        if value is None:
            there.pop(name, None)
        else:
            digest = blake3(value).digest(length=_DIGEST_BYTES)
            if there.get(name) == digest:
                return False
            there[name] = digest
        self.sink.add(Delta(Op.XATTR, file_id, args=(name, value), at_us=at_us))
        return True

    def write(self, file_id: int, offset: int, data: bytes | memoryview, at_us: int) -> None:
        self.content_changes += 1
        self.sink.add_write(file_id, offset, data, at_us)

    def truncate(self, file_id: int, size: int, at_us: int) -> None:
        self.content_changes += 1
        self.sink.add(Delta(Op.TRUNCATE, file_id, size, at_us=at_us))

    def punch(self, file_id: int, offset: int, length: int, at_us: int) -> None:
        self.content_changes += 1
        self.sink.add(Delta(Op.PUNCH, file_id, offset, length, at_us=at_us))

    def readable_path(self, file_id: int) -> str:
        """For messages: a path of the id, odd bytes escaped."""
        path = self.tree.path(file_id)
        return f"file {file_id}" if path is None else readable(path or b".")

    def _put(self, delta: deltas.Delta) -> None:
        self.tree.apply(delta)
        self.sink.add(delta)

    def _forget_if_gone(self, file_id: int) -> int | None:
        if file_id in self.tree.nodes:
            return None
        for forget in self.on_forget:
            forget(file_id)
        self.unbind(file_id)
        self.unmapped.discard(file_id)
        self.unverified.discard(file_id)
        self.xattrs.pop(file_id, None)
        return file_id


def readable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


__all__ = ["PARKED", "ROOT_ID", "Shadow", "readable"]
