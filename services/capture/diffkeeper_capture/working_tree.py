"""The tree that a capture works on: in its file, but for what no commit has yet and what was used lately.

Memory does not grow with the number of files: a layer has what changed since the last commit, and the owner commits
when that is much. Changes are fed to the file while others wait; as long as they are not committed the layer has them
too, so a disk that fails or is full takes nothing away: they are fed again. What is asked for is looked up in the
layer, then among what was used lately, then in the file (some microseconds, as long as the kernel has its pages).

The twin in memory is ``trees.Tree`` with dictionaries for the inodes; ``Shadow`` takes either.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

from diffkeeper.domain import frames, positions, tree_increments, trees
from diffkeeper.domain.trees import Kind, Node
from diffkeeper.tree_store import Fingerprints, TreeStore, signed, unsigned

# Of each kind of what was used lately. A node takes about half a kilobyte.
REMEMBERED = 1024
# What one SELECT of a listing brings.
_PAGE = 1000

_NODE = "SELECT kind, mode, uid, gid, target, inode, generation FROM nodes WHERE id = ?"
_ENTRIES = "SELECT parent, name FROM names WHERE id = ?"
_CHILD = "SELECT id FROM names WHERE parent = ? AND name = ?"
_HOLDER = "SELECT id FROM nodes WHERE inode = ?"
_CHILDREN = "SELECT name, id FROM names WHERE parent = ?"
_SOME_CHILDREN = "SELECT name FROM names WHERE parent = ? LIMIT ?"
_IDS = "SELECT id FROM nodes WHERE id > ? ORDER BY id LIMIT ?"

_PUT_NODE = """
INSERT INTO nodes (id, kind, mode, uid, gid, target, device, inode, generation) VALUES (?,?,?,?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET mode = excluded.mode, uid = excluded.uid, gid = excluded.gid,
device = excluded.device, inode = excluded.inode, generation = excluded.generation
"""
_TAKE_NODE = "DELETE FROM nodes WHERE id = ?"
_PUT_NAME = "INSERT OR REPLACE INTO names VALUES (?,?,?)"
_TAKE_NAME = "DELETE FROM names WHERE parent = ? AND name = ?"
_PUT_PRINT = "UPDATE nodes SET size = ?, mtime = ?, ctime = ? WHERE id = ?"

Print = tuple[int, int, int]
_Key = TypeVar("_Key")


@dataclass(slots=True)
class _Row(Node):
    """A node and the inode that it is."""

    inode: int | None = None
    generation: int = 0
    # False when its last name is gone; its inode is asked for after that.
    is_there: bool = True


class WorkingTree(trees.Tree):
    """Owns the store. ``device`` is that of the volume, told before anything is fed."""

    __slots__ = (
        "_changed",
        "_count",
        "_found",
        "_fresh",
        "_holders",
        "_lately",
        "_lately_holders",
        "_names",
        "_store",
        "_unfed",
        "_unfed_names",
        "by_inode",
        "device",
        "fingerprints",
        "generation_of",
        "inode_of",
        "told",
        "touched_since_told",
    )

    def __init__(self, store: TreeStore) -> None:
        self._store = store
        self._found = _Nodes(self)
        self.next_id = store.tree.next_id
        self.device = 0
        # What changed since the last commit. An id or an inode of 0 is none.
        self._changed: dict[int, _Row] = {}
        self._fresh: set[int] = set()
        self._names: dict[int, dict[bytes, int]] = {}
        self._holders: dict[int, int] = {}
        # What of it the file has not taken yet.
        self._unfed: dict[int, None] = {}
        self._unfed_names: dict[tuple[int, bytes], None] = {}
        # What is as in the file.
        self._lately: dict[int, _Row] = {}
        self._lately_holders: dict[int, int] = {}
        self._count = len(store.tree.nodes)
        self.by_inode: MutableMapping[int, int] = _Holders(self)
        self.inode_of: MutableMapping[int, int] = _Inodes(self)
        self.generation_of: MutableMapping[int, int] = _Generations(self)
        # Where all of the tree was told to somebody, and which ids the commits since then have touched.
        self.told: frames.Tip | None = None
        self.touched_since_told: set[int] = set()
        # Of files at the last commit.
        self.fingerprints: Fingerprints = store.fingerprints

    # -- the tree --------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[int, Node]:
        return self._found

    def ids(self) -> Iterator[int]:
        fresh, last = sorted(self._fresh), 0
        known = frozenset(fresh)
        while rows := self._ask(_IDS, (last, _PAGE)):
            for (last,) in rows:
                if last not in known and self.row(last) is not None:
                    yield last
        for file_id in fresh:
            if self.row(file_id) is not None:
                yield file_id

    def child(self, parent: int, name: bytes) -> int | None:
        there = self._names.get(parent)
        if there is not None:
            found = there.get(name)
            if found is not None:
                return found or None
        if parent in self._fresh:
            return None  # all of its names are in the layer
        rows = self._ask(_CHILD, (parent, name))
        return int(rows[0][0]) if rows else None

    def unidentified(self) -> set[int]:
        """Ids whose inode is not known: few."""
        found = self._store.tree.unidentified() - self._changed.keys()
        found |= {file_id for file_id, row in self._changed.items() if row.is_there and row.inode is None}
        return found

    def _add(self, file_id: int, node: Node) -> None:
        row = _Row(node.kind, node.mode, node.uid, node.gid, node.target)
        if node.kind is Kind.DIR:
            row.children = _Children(self, file_id)
        self._changed[file_id] = row
        self._fresh.add(file_id)
        self._unfed[file_id] = None
        self._count += 1

    def _drop(self, file_id: int) -> None:
        row = self._own(file_id)
        row.is_there = False
        if row.inode is not None and self.holder(row.inode) == file_id:
            self._holders[row.inode] = 0
        self._count -= 1

    def _name(self, file_id: int, parent: int, name: bytes) -> None:
        self._own(file_id).entries.add((parent, name))
        self._names.setdefault(parent, {})[name] = file_id
        self._unfed_names[parent, name] = None

    def _unname(self, file_id: int, parent: int, name: bytes) -> None:
        self._own(file_id).entries.discard((parent, name))
        self._names.setdefault(parent, {})[name] = 0
        self._unfed_names[parent, name] = None

    def _set_attributes(self, file_id: int, mode: int, uid: int, gid: int) -> None:
        row = self._own(file_id)
        row.mode, row.uid, row.gid = mode, uid, gid

    # -- looking up ------------------------------------------------------------------------------------------

    def row(self, file_id: int) -> _Row | None:
        row = self.row_or_gone(file_id)
        return row if row is not None and row.is_there else None

    def row_or_gone(self, file_id: int) -> _Row | None:
        """Also of an id that was dropped since the last commit."""
        row = self._changed.get(file_id) or self._lately.get(file_id)
        if row is None and file_id < self.next_id:
            row = self._read(file_id)
            if row is not None:
                _remember(self._lately, file_id, row)
        return row

    def holder(self, inode: int) -> int | None:
        """The id that has an inode number."""
        found = self._holders.get(inode)
        if found is None:
            found = self._lately_holders.get(inode)
        if found is None:
            rows = self._ask(_HOLDER, (signed(inode),))
            found = int(rows[0][0]) if rows else 0
            _remember(self._lately_holders, inode, found)
        return found or None

    def children(self, parent: int) -> dict[bytes, int]:
        """A copy."""
        found: dict[bytes, int] = dict(self._ask(_CHILDREN, (parent,)))
        for name, file_id in self._names.get(parent, {}).items():
            if file_id:
                found[name] = file_id
            else:
                found.pop(name, None)
        return found

    def has_children(self, parent: int) -> bool:
        changed = self._names.get(parent, {})
        if any(changed.values()):
            return True
        some = self._ask(_SOME_CHILDREN, (parent, len(changed) + 1))
        return any(name not in changed for (name,) in some)

    def __len__(self) -> int:
        return self._count

    def _read(self, file_id: int) -> _Row | None:
        rows = self._ask(_NODE, (file_id,))
        if not rows:
            return None
        kind, mode, uid, gid, target, inode, generation = rows[0]
        row = _Row(Kind(kind), mode, uid, gid, target or b"", set(self._ask(_ENTRIES, (file_id,))))
        if row.kind is Kind.DIR:
            row.children = _Children(self, file_id)
        row.inode, row.generation = None if inode is None else unsigned(inode), generation or 0
        return row

    def _ask(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            return self._store.ask(query, values)
        except sqlite3.OperationalError:
            # A change that had no room any more in memory had none on the disk either.
            self._feed_again()
            with self._store.errors():
                return self._store.ask(query, values)
        except sqlite3.DatabaseError:
            with self._store.errors():
                raise

    # -- changing --------------------------------------------------------------------------------------------

    def _own(self, file_id: int) -> _Row:
        """To be changed by the caller, who has checked that there is one."""
        row = self._changed.get(file_id)
        if row is None:
            row = self.row_or_gone(file_id)
            assert row is not None, "only what the tree has is changed"
            self._lately.pop(file_id, None)
            self._changed[file_id] = row
        self._unfed[file_id] = None
        return row

    def bind(self, file_id: int, inode: int) -> None:
        if self.row_or_gone(file_id) is not None:
            self._own(file_id).inode = inode
            self._holders[inode] = file_id

    def unbind(self, file_id: int) -> int | None:
        row = self.row_or_gone(file_id)
        if row is None or row.inode is None:
            return None
        inode = row.inode
        self._own(file_id).inode = None
        return inode

    def hold(self, inode: int, file_id: int) -> None:
        self._holders[inode] = file_id

    def set_generation(self, file_id: int, generation: int) -> None:
        row = self.row_or_gone(file_id)
        if row is not None and row.generation != generation:
            self._own(file_id).generation = generation

    # -- keeping ---------------------------------------------------------------------------------------------

    @property
    def saved(self) -> positions.Position:
        return self._store.position

    @property
    def unsaved(self) -> int:
        """How many ids changed since the last commit."""
        return len(self._changed)

    def unsaved_ids(self) -> Iterable[int]:
        return self._changed.keys()

    @property
    def unfed(self) -> int:
        return len(self._unfed) + len(self._unfed_names)

    def feed(self, limit: int) -> bool:
        """Bring changes to the file, none of which counts before ``commit``; whether there are more.

        Raises Transient, and then all of them wait as before.
        """
        if not (self._unfed or self._unfed_names):
            return False
        try:
            with self._store.errors():
                self._feed_nodes(_some(self._unfed, limit))
                self._feed_names(_some(self._unfed_names, limit))
        except BaseException:
            self._feed_again()
            raise
        return bool(self._unfed or self._unfed_names)

    def _feed_nodes(self, ids: list[int]) -> None:
        rows = [(file_id, self._changed[file_id]) for file_id in ids]
        self._store.change_many(_TAKE_NODE, [(file_id,) for file_id, row in rows if not row.is_there])
        self._store.change_many(
            _PUT_NODE, [self._columns(file_id, row) for file_id, row in rows if row.is_there]
        )

    def _columns(self, file_id: int, row: _Row) -> tuple[Any, ...]:
        identity: tuple[int | None, ...] = (None, None, row.generation or None)
        if row.inode is not None:
            identity = (signed(self.device), signed(row.inode), row.generation)
        return (file_id, int(row.kind), row.mode, row.uid, row.gid, row.target or None, *identity)

    def _feed_names(self, places: list[tuple[int, bytes]]) -> None:
        stand = [(parent, name, self._names[parent][name]) for parent, name in places]
        self._store.change_many(_TAKE_NAME, [(parent, name) for parent, name, found in stand if not found])
        self._store.change_many(_PUT_NAME, [entry for entry in stand if entry[2]])

    def _feed_again(self) -> None:
        """The file may have let go of all since the last commit."""
        self._store.roll_back()
        self._unfed = dict.fromkeys(self._changed)
        self._unfed_names = {(parent, name): None for parent, there in self._names.items() for name in there}

    def commit(
        self,
        position: positions.Position,
        frame_hash: bytes,
        stamp: int,
        prints: Mapping[int, Print | None],
    ) -> None:
        """The tree as it is now is the tree at ``position`` for whoever opens the file. Raises Transient, and then
        nothing is different.
        """
        try:
            while self.feed(len(self._changed) + len(self._names)):
                pass
            with self._store.errors():
                self._store.change_many(
                    _PUT_PRINT,
                    [(*(print_ or (None, None, None)), file_id) for file_id, print_ in prints.items()],
                )
            self._store.tree.next_id = self.next_id
            self._store.commit(position, frame_hash, stamp)
        except BaseException:
            self._feed_again()
            raise
        self.touched_since_told.update(self._changed, prints)
        self._let_go()

    def increment(self, base: frames.Tip) -> tree_increments.Increment:
        """What the commits since ``told`` have made of the tree. Nothing may be uncommitted."""
        assert not self._changed, "the file would not have all of it"
        return self._store.increment(base, self.touched_since_told)

    def _let_go(self) -> None:
        """The file has all of the layer; a part of it is wanted again soon."""
        last = itertools.islice(reversed(self._changed.items()), REMEMBERED)
        self._lately = {file_id: row for file_id, row in last if row.is_there}
        self._lately_holders = {
            row.inode: file_id for file_id, row in self._lately.items() if row.inode is not None
        }
        self._changed, self._names, self._holders = {}, {}, {}
        self._fresh.clear()

    def sync(self) -> None:
        """The last commit outlives the machine's power. Blocking; may run in a thread beside the owner."""
        self._store.sync()

    def close(self) -> None:
        """Changes since the last commit are dropped."""
        self._store.close()


class _Nodes(Mapping[int, Node]):
    def __init__(self, tree: WorkingTree) -> None:
        self._tree = tree

    def get(self, file_id: int, default: Any = None) -> Any:
        row = self._tree.row(file_id)
        return default if row is None else row

    def __getitem__(self, file_id: int) -> Node:
        row = self._tree.row(file_id)
        if row is None:
            raise KeyError(file_id)
        return row

    def __contains__(self, file_id: object) -> bool:
        return isinstance(file_id, int) and self._tree.row(file_id) is not None

    def __iter__(self) -> Iterator[int]:
        return self._tree.ids()

    def __len__(self) -> int:
        return len(self._tree)


class _Children(Mapping[bytes, int]):
    """Names below one directory, as they are when asked."""

    __slots__ = ("_directory", "_tree")

    def __init__(self, tree: WorkingTree, directory: int) -> None:
        self._tree = tree
        self._directory = directory

    def get(self, name: bytes, default: Any = None) -> Any:
        found = self._tree.child(self._directory, name)
        return default if found is None else found

    def __getitem__(self, name: bytes) -> int:
        found = self._tree.child(self._directory, name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and self._tree.child(self._directory, name) is not None

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._tree.children(self._directory))

    def __len__(self) -> int:
        return len(self._tree.children(self._directory))

    def __bool__(self) -> bool:
        return self._tree.has_children(self._directory)

    def items(self) -> ItemsView[bytes, int]:
        return self._tree.children(self._directory).items()


class _Kept(MutableMapping[int, int]):
    """As a dictionary: what was never set, or taken away, is not there."""

    def __init__(self, tree: WorkingTree) -> None:
        self._tree = tree

    def _find(self, key: int) -> int | None:
        raise NotImplementedError

    def get(self, key: int, default: Any = None) -> Any:
        found = self._find(key)
        return default if found is None else found

    def __getitem__(self, key: int) -> int:
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and self._find(key) is not None

    def pop(self, key: int, default: Any = None) -> Any:
        found = self._find(key)
        if found is None:
            return default
        del self[key]
        return found

    def __iter__(self) -> Iterator[int]:
        return (file_id for file_id in self._tree.ids() if self._find(file_id) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Inodes(_Kept):
    """id → inode."""

    def _find(self, key: int) -> int | None:
        row = self._tree.row_or_gone(key)
        return None if row is None else row.inode

    def __setitem__(self, key: int, inode: int) -> None:
        self._tree.bind(key, inode)

    def __delitem__(self, key: int) -> None:
        if self._tree.unbind(key) is None:
            raise KeyError(key)


class _Holders(_Kept):
    """inode → id."""

    def _find(self, key: int) -> int | None:
        return self._tree.holder(key)

    def __setitem__(self, inode: int, file_id: int) -> None:
        self._tree.hold(inode, file_id)

    def __delitem__(self, inode: int) -> None:
        self._tree.hold(inode, 0)

    def __iter__(self) -> Iterator[int]:
        inodes = self._tree.inode_of
        return (inodes[file_id] for file_id in inodes)


class _Generations(_Kept):
    """id → generation of its inode, where the file system has one."""

    def _find(self, key: int) -> int | None:
        row = self._tree.row_or_gone(key)
        return None if row is None or not row.generation else row.generation

    def __setitem__(self, file_id: int, generation: int) -> None:
        self._tree.set_generation(file_id, generation)

    def __delitem__(self, file_id: int) -> None:
        self._tree.set_generation(file_id, 0)


def _some(waiting: dict[_Key, None], limit: int) -> list[_Key]:
    """Take up to ``limit`` keys out."""
    some = list(itertools.islice(waiting, limit))
    for key in some:
        del waiting[key]
    return some


def _remember(lately: dict[int, Any], key: int, found: Any) -> None:
    """All go when there are too many: what is in use comes back at once, and a thread that reads meanwhile does not
    mind.
    """
    if len(lately) >= REMEMBERED:
        lately.clear()
    lately[key] = found
