"""From one state to another as a stream of changes by path: restore is from nothing to a moment, a rollback
from the newest moment back.

The order: what stands wrong is put aside or removed, from the leaves up; then everything is put where it
belongs, from the root down; then contents; then owners, extended attributes and times, leaves first, because a
directory may forbid what comes before. Exact whatever was renamed to whatever: nothing moves from one wrong
place to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from blake3 import blake3

from diffkeeper.changes import DATA_MAX_BYTES, Change
from diffkeeper.domain import trees
from diffkeeper.domain.deltas import ROOT_ID, Delta, Op
from diffkeeper_replicator.contents import blocks
from diffkeeper_replicator.extents import HOLE, Extents, changes
from diffkeeper_replicator.states import State

_ASIDE = b".diffkeeper-aside"
# Which paths are wanted; a directory above a wanted path is wanted too.
Chosen = Callable[[bytes], bool]
# What comes for one file: its state, id and path.
Content = Callable[[State, int, bytes], Iterator[Change]]


def restore(
    state: State, chosen: Chosen | None = None, skip: int = 0, content: Content | None = None
) -> Iterator[Change]:
    """Everything from nothing: names, contents with digests, owners. The first ``skip`` files are named, but
    their content is there already. ``content`` says otherwise what comes for a file.
    """
    wanted = _chosen(state.tree, chosen)
    first: dict[int, bytes] = {}
    nth = 0
    for path, file_id in state.tree.paths():
        if path not in wanted:
            continue
        node = state.tree.nodes[file_id]
        if file_id in first:
            yield ("link", first[file_id], path)
            continue
        first[file_id] = path
        if node.kind is not trees.Kind.FILE:
            yield _made(node, path)
            continue
        nth += 1
        yield ("create", path)
        if nth > skip:
            yield from (content or _whole)(state, file_id, path)
    for path, file_id in reversed([(b"", ROOT_ID), *((path, file_id) for file_id, path in first.items())]):
        yield from _attributes(state, file_id, path)


def patch(old: State, new: State) -> Iterator[Change]:
    """What turns a directory that shows ``old`` into one that shows ``new``. Both states are of one log."""
    yield from _Patch(old, new).run()


class _Patch:
    def __init__(self, old: State, new: State) -> None:
        self._old, self._new = old, new
        # As the directory is now.
        self._tree = old.copy().tree
        self._aside: set[int] = set()
        self._prefix = _ASIDE
        taken = old.tree.nodes[ROOT_ID].children.keys() | new.tree.nodes[ROOT_ID].children.keys()
        while any(name.startswith(self._prefix) for name in taken):
            self._prefix += b"-"

    def run(self) -> Iterator[Change]:
        yield from self._open_directories()
        yield from self._take_away()
        yield from self._put()
        written: set[int] = set()
        for file_id in self._new.files:
            path = self._tree.path(file_id)
            assert path is not None, "everything has been put"
            for change in self._content(file_id, path):
                written.add(file_id)
                yield change
        for file_id, path in self._from_the_leaves():
            if file_id in written or not self._has_attributes(file_id):
                yield from _attributes(self._new, file_id, path, self._old)

    def _has_attributes(self, file_id: int) -> bool:
        """Whether what stands there has its owner, mode, extended attributes and times already."""
        one, other = self._old.tree.nodes.get(file_id), self._new.tree.nodes[file_id]
        if one is None or (other.kind is trees.Kind.DIR and one.mode & 0o700 != 0o700):
            return False
        return (one.mode, one.uid, one.gid) == (other.mode, other.uid, other.gid) and all(
            old.get(file_id) == new.get(file_id)
            for old, new in ((self._old.xattrs, self._new.xattrs), (self._old.times, self._new.times))
        )

    def _open_directories(self) -> Iterator[Change]:
        """Directories whose mode forbids changing them are opened first; their own mode comes last."""
        for path, file_id in [(b"", ROOT_ID), *self._old.tree.paths()]:
            node = self._old.tree.nodes[file_id]
            if node.kind is trees.Kind.DIR and node.mode & 0o700 != 0o700:
                yield ("owner", path, node.mode | 0o700, node.uid, node.gid)

    def _take_away(self) -> Iterator[Change]:
        """Entries that are not of the new state: of what lives on, one is put aside, the rest goes."""
        entries = [
            (path, file_id) for path, file_id in self._old.tree.paths() if not self._stays(path, file_id)
        ]
        for path, file_id in reversed(entries):
            now = self._old.tree.nodes[file_id]
            parent, name = self._entry(path)
            if (
                file_id in self._new.tree.nodes
                and file_id not in self._aside
                and not self._has_right(file_id)
            ):
                aside = b"%s%d" % (self._prefix, file_id)
                yield ("rename", path, aside, False)
                self._tree.apply(Delta(Op.RENAME, file_id, args=(parent, name, ROOT_ID, aside, False)))
                self._aside.add(file_id)
            elif now.kind is trees.Kind.DIR:
                yield ("rmdir", path)
                self._tree.apply(Delta(Op.RMDIR, file_id, args=(parent, name)))
            else:
                yield ("unlink", path)
                self._tree.apply(Delta(Op.UNLINK, file_id, args=(parent, name)))

    def _stays(self, path: bytes, file_id: int) -> bool:
        parent, name = self._old_entry(path)
        return self._new.tree.child(parent, name) == file_id

    def _has_right(self, file_id: int) -> bool:
        """Whether one of its entries stands where it belongs, so that no name needs to be put aside."""
        return bool(self._old.tree.nodes[file_id].entries & self._new.tree.nodes[file_id].entries)

    def _old_entry(self, path: bytes) -> tuple[int, bytes]:
        above, _, name = path.rpartition(b"/")
        parent = self._old.tree.walk(above)
        assert parent is not None, "a path of the tree has a parent"
        return parent, name

    def _entry(self, path: bytes) -> tuple[int, bytes]:
        return self._old_entry(path)  # parents are taken away after what is in them

    def _put(self) -> Iterator[Change]:
        for path, file_id in self._new.tree.paths():
            above, _, name = path.rpartition(b"/")
            parent = self._new.tree.walk(above)
            assert parent is not None, "a path of the tree has a parent"
            if self._tree.child(parent, name) == file_id:
                continue
            node = self._new.tree.nodes[file_id]
            if file_id in self._aside:
                aside = b"%s%d" % (self._prefix, file_id)
                yield ("rename", aside, path, False)
                self._tree.apply(Delta(Op.RENAME, file_id, args=(ROOT_ID, aside, parent, name, False)))
                self._aside.discard(file_id)
            elif file_id in self._tree.nodes:
                source = self._tree.path(file_id)
                assert source is not None, "what lives has a path"
                yield ("link", source, path)
                self._tree.apply(Delta(Op.LINK, file_id, args=(parent, name)))
            else:
                yield _made(node, path)
                self._tree.apply(_making(node, file_id, parent, name))

    def _content(self, file_id: int, path: bytes) -> Iterator[Change]:
        before = self._old.files.get(file_id)
        if before is None:
            yield from _whole(self._new, file_id, path)
            return
        after = self._new.files[file_id]
        touched = False
        if before.size > after.size:
            yield ("truncate", path, after.size)
            touched = True
        for start, end, _, address in self._different(before, after):
            touched = True
            if address == HOLE:
                yield ("punch", path, start, end - start)
                continue
            for at in range(start, end, DATA_MAX_BYTES):
                size = min(DATA_MAX_BYTES, end - at)
                yield ("write", path, at, self._new.contents.read(address + at - start, size))
        if before.size < after.size:
            yield ("truncate", path, after.size)
            touched = True
        if touched:
            yield ("digest", path, content_digest(self._new, file_id))

    def _different(self, before: Extents, after: Extents) -> Iterator[tuple[int, int, int, int]]:
        if self._old.contents is self._new.contents:
            return changes(before, after)
        return different(self._old, before, self._new, after)

    def _from_the_leaves(self) -> Iterator[tuple[int, bytes]]:
        told: set[int] = set()
        for path, file_id in reversed([(b"", ROOT_ID), *self._new.tree.paths()]):
            if file_id not in told:
                told.add(file_id)
                yield file_id, path


def different(old: State, before: Extents, new: State, after: Extents) -> Iterator[tuple[int, int, int, int]]:
    """As ``extents.changes`` for states that do not share their contents: by comparing bytes."""
    step = DATA_MAX_BYTES
    for start, end, address in after.pieces(0, after.size):
        for at in range(start, end, step):
            stop = min(end, at + step)
            there = HOLE if address == HOLE else address + at - start
            if at >= before.size:
                yield at, stop, HOLE, there
                continue
            held = b"".join(
                old.contents.read(piece, until - since) for since, until, piece in before.pieces(at, stop)
            )
            if held.ljust(stop - at, b"\0") != new.contents.read(there, stop - at):
                yield at, stop, HOLE, there


def content_digest(state: State, file_id: int) -> bytes:
    """BLAKE3 of a file's content, holes as zeros."""
    hasher = blake3()
    extents = state.files[file_id]
    zeros = bytes(DATA_MAX_BYTES)
    at = 0
    for offset, data in blocks(state.contents, extents, 0, extents.size):
        _hash_zeros(hasher, offset - at, zeros)
        hasher.update(data)
        at = offset + len(data)
    _hash_zeros(hasher, extents.size - at, zeros)
    digest: bytes = hasher.digest()
    return digest


def _hash_zeros(hasher: blake3, count: int, zeros: bytes) -> None:
    while count > 0:
        hasher.update(zeros[:count])
        count -= len(zeros)


def _whole(state: State, file_id: int, path: bytes) -> Iterator[Change]:
    extents = state.files[file_id]
    hasher, zeros, at = blake3(), bytes(DATA_MAX_BYTES), 0
    for offset, data in blocks(state.contents, extents, 0, extents.size):
        yield ("write", path, offset, data)
        _hash_zeros(hasher, offset - at, zeros)
        hasher.update(data)
        at = offset + len(data)
    _hash_zeros(hasher, extents.size - at, zeros)
    yield ("truncate", path, extents.size)
    yield ("digest", path, hasher.digest())


def _attributes(state: State, file_id: int, path: bytes, before: State | None = None) -> Iterator[Change]:
    node = state.tree.nodes[file_id]
    kept = state.xattrs.get(file_id, {})
    gone: set[bytes] = set()
    if before is not None:
        gone = before.xattrs.get(file_id, {}).keys() - kept.keys()
    yield ("owner", path, node.mode, node.uid, node.gid)
    for name in sorted(gone):
        yield ("xattr", path, name, None)
    if node.kind in (trees.Kind.FILE, trees.Kind.DIR):
        for name, value in sorted(kept.items()):
            yield ("xattr", path, name, value)
    times = state.times.get(file_id)
    if times is not None and times != (None, None):
        yield ("times", path, *times)


def _made(node: trees.Node, path: bytes) -> Change:
    match node.kind:
        case trees.Kind.DIR:
            return ("mkdir", path)
        case trees.Kind.SYMLINK:
            return ("symlink", path, node.target)
        case trees.Kind.FIFO:
            return ("fifo", path)
        case _:
            return ("create", path)


_OP_OF = {trees.Kind.DIR: Op.MKDIR, trees.Kind.FIFO: Op.MKFIFO, trees.Kind.FILE: Op.CREATE}


def _making(node: trees.Node, file_id: int, parent: int, name: bytes) -> Delta:
    if node.kind is trees.Kind.SYMLINK:
        return Delta(Op.SYMLINK, file_id, args=(parent, name, node.target, node.uid, node.gid))
    return Delta(_OP_OF[node.kind], file_id, args=(parent, name, node.mode, node.uid, node.gid))


def _chosen(tree: trees.Tree, chosen: Chosen | None) -> set[bytes]:
    """The wanted paths and every directory above one."""
    found: set[bytes] = set()
    for path, _ in tree.paths():
        if chosen is None or chosen(path):
            found.add(path)
            above = path.rpartition(b"/")[0]
            while above and above not in found:
                found.add(above)
                above = above.rpartition(b"/")[0]
    return found
