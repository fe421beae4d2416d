"""A volume's tree in a file: memory does not grow with the number of files, and keeping it costs what changed.

One SQLite database holds names, attributes, the local identity of each id and the fingerprints of files. All
changes since the last ``commit`` stand in one open transaction: whatever ends the process, the file has the
tree at the position of that commit, from which the frames behind it lead on. ``commit`` itself does not wait
for the disk; ``sync`` does, beside the owner if need be.

The twin in memory is ``diffkeeper.domain.trees.Tree``; both take the same deltas and refuse the same.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions, tree_increments, trees
from diffkeeper.domain.deltas import ROOT_ID
from diffkeeper.domain.trees import Identity, Kind, Node

_VERSION = 1
# Nodes, and inode numbers, that were asked for lately and are answered without the database. A node takes
# about half a kilobyte.
_REMEMBERED = 8192
# What the database may keep of its pages in memory, if its owner does not say.
PAGES_KIB = 8 * 1024
# SQLite counts to 2^63; inode numbers of layered file systems use the bit above.
_SIGN = 1 << 63
_WRAP = 1 << 64

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE nodes (
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
    gid INTEGER NOT NULL, target BLOB, device INTEGER, inode INTEGER, generation INTEGER,
    size INTEGER, mtime INTEGER, ctime INTEGER
);
CREATE INDEX nodes_by_inode ON nodes (inode) WHERE inode IS NOT NULL;
CREATE INDEX nodes_without_inode ON nodes (id) WHERE inode IS NULL;
CREATE TABLE names (parent INTEGER NOT NULL, name BLOB NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (parent, name))
WITHOUT ROWID;
CREATE INDEX names_by_id ON names (id);
"""

_INSERT_NODE = "INSERT INTO nodes VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
_INSERT_NAME = "INSERT INTO names VALUES (?,?,?)"

V = TypeVar("V")


class TreeStore:
    """Made by ``create`` or ``open``. One owner; not safe for threads but for ``sync``."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._database = database
        self.execute = database.execute
        self._read_facts()
        self.identities = Identities(self)
        self.fingerprints = Fingerprints(self)

    def _read_facts(self) -> None:
        facts: dict[str, Any] = dict(self.execute("SELECT name, value FROM facts"))
        if facts.get("version") != _VERSION:
            raise ValueError(f"version {facts.get('version')}")
        self.volume = str(facts["volume"])
        self.position = positions.parse(facts["position"])
        self.frame_hash = bytes(facts["hash"])
        self.stamp = int(facts["stamp"])
        self.tree = StoredTree(self, int(facts["next_id"]))

    @classmethod
    def create(cls, path: Path, state: trees.TreeState, pages_kib: int = PAGES_KIB) -> TreeStore:
        """A copy of ``state``, durable and open, in place of whatever is at ``path``."""
        unfinished = path.with_name(path.name + ".new")
        _remove(unfinished)
        with _errors(path), contextlib.closing(_connect(unfinished)) as database:
            # Nobody reads it before it is renamed, so nothing needs to be safe before that.
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.executescript(_SCHEMA)
            database.execute("BEGIN")
            database.executemany(_INSERT_NODE, _node_rows(state, state.tree.nodes))
            database.executemany(_INSERT_NAME, _name_rows(state.tree.nodes))
            facts = {
                "version": _VERSION,
                "volume": state.volume,
                "position": str(state.position),
                "hash": state.frame_hash,
                "stamp": state.stamp,
                "next_id": state.tree.next_id,
            }
            database.executemany("INSERT INTO facts VALUES (?,?)", facts.items())
            database.execute("COMMIT")
        _sync_file(unfinished)
        _remove(path)
        unfinished.rename(path)
        atomic_files.fsync_directory(path.parent)
        return cls.open(path, pages_kib)

    @classmethod
    def open(cls, path: Path, pages_kib: int = PAGES_KIB) -> TreeStore:
        """As of its last commit. Raises Corrupt when it is not what ``create`` made, NotFound without one."""
        if not path.exists():
            raise errors.NotFound(f"there is no tree at {path}", reason="no-tree-store", path=path)
        with _errors(path):
            database = _connect(path, pages_kib)
            try:
                database.execute("PRAGMA journal_mode = WAL")
                # A commit does not wait for the disk (``sync`` does), folding the log into the file does.
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute("PRAGMA wal_autocheckpoint = 0")
                return cls(path, database)
            except BaseException:
                database.close()
                raise

    def change(self, statement: str, values: tuple[Any, ...]) -> None:
        if not self._database.in_transaction:
            self.execute("BEGIN IMMEDIATE")
        self.execute(statement, values)

    def change_many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            if not self._database.in_transaction:
                self.execute("BEGIN IMMEDIATE")
            self._database.executemany(statement, rows)

    def ask(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        """Raises what SQLite raises: a reader, too, may have to make room by writing what was changed."""
        return self.execute(query, values).fetchall()

    def roll_back(self) -> None:
        """Let go of all changes since the last commit, as a failing disk may have done already."""
        if self._database.in_transaction:
            self.execute("ROLLBACK")

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """In which SQLite's errors are ours."""
        return _errors(self.path)

    def load(self) -> trees.TreeState:
        """All of it in memory: what whoever goes on without the file begins with."""
        entries: dict[int, set[tuple[int, bytes]]] = {}
        nodes: dict[int, Node] = {}
        identities: dict[int, Identity] = {}
        prints: dict[int, tuple[int, int, int]] = {}
        with _errors(self.path):
            for parent, name, file_id in self.execute("SELECT parent, name, id FROM names"):
                entries.setdefault(file_id, set()).add((parent, name))
            for row in self.execute("SELECT * FROM nodes"):
                _take_row(row, entries.get(row[0], set()), nodes, identities, prints)
            tree = trees.Tree.of(nodes.items(), self.tree.next_id)
        return trees.TreeState(
            self.volume, self.position, self.frame_hash, self.stamp, tree, identities, prints
        )

    @classmethod
    def snapshot(cls, path: Path) -> trees.TreeState:
        """All of what was committed last, beside the owner, who may go on."""
        store = cls.open(path)
        try:
            with _errors(path):
                store.execute("BEGIN")
                store._read_facts()
            return store.load()
        finally:
            store.close()

    def increment(self, base: frames.Tip, touched: Iterable[int]) -> tree_increments.Increment:
        """What became of these ids since ``base``, as of the last commit."""
        ids = frozenset(touched)
        nodes: dict[int, Node] = {}
        identities: dict[int, Identity] = {}
        prints: dict[int, tuple[int, int, int]] = {}
        with _errors(self.path):
            for file_id in ids:
                row = self.execute("SELECT * FROM nodes WHERE id = ?", (file_id,)).fetchone()
                if row is not None:
                    names = self.execute("SELECT parent, name FROM names WHERE id = ?", (file_id,))
                    _take_row(row, set(names), nodes, identities, prints)
        return tree_increments.Increment(
            self.volume,
            base,
            frames.Tip(self.position, self.frame_hash),
            self.stamp,
            self.tree.next_id,
            ids,
            nodes,
            identities,
            prints,
        )

    def commit(self, position: positions.Position, frame_hash: bytes, stamp: int) -> None:
        """What the tree is now is the tree at ``position``, for whoever opens the file after this."""
        with _errors(self.path):
            facts = {
                "position": str(position),
                "hash": frame_hash,
                "stamp": stamp,
                "next_id": self.tree.next_id,
            }
            for name, value in facts.items():
                self.change("UPDATE facts SET value = ? WHERE name = ?", (value, name))
            self.execute("COMMIT")
        self.position, self.frame_hash, self.stamp = position, frame_hash, stamp

    def advance(self, increment: tree_increments.Increment) -> None:
        """Commit what became of the tree; costs what was touched. Raises Corrupt, with nothing changed, when it is not of
        this one.
        """
        tree_increments.check_base(frames.Tip(self.position, self.frame_hash), self.volume, increment)
        state = trees.TreeState(
            self.volume,
            increment.tip.position,
            increment.tip.hash,
            increment.stamp,
            trees.Tree(),
            increment.identities,
            increment.prints,
        )
        touched = [(file_id,) for file_id in increment.touched]
        with _errors(self.path):
            self.change_many("DELETE FROM names WHERE id = ?", touched)
            self.change_many("DELETE FROM nodes WHERE id = ?", touched)
            self.change_many(_INSERT_NODE, list(_node_rows(state, increment.nodes)))
            self.change_many(_INSERT_NAME, list(_name_rows(increment.nodes)))
        self.tree.forget(increment.touched)
        self.tree.next_id = increment.next_id
        self.commit(increment.tip.position, increment.tip.hash, increment.stamp)

    def sync(self) -> None:
        """The last commit is on disk when this returns. Blocking; may run beside the owner, in a thread."""
        with _errors(self.path):
            log = self.path.with_name(self.path.name + "-wal")
            if log.exists():
                _sync_file(log)
            with contextlib.closing(_connect(self.path)) as database:
                # By another connection, so that the owner does not wait: it takes what no reader needs.
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA wal_checkpoint(PASSIVE)")
            _sync_file(self.path)

    def close(self) -> None:
        """Changes since the last commit are dropped."""
        with _errors(self.path):
            if self._database.in_transaction:
                self.execute("ROLLBACK")
            self._database.close()


class StoredTree(trees.Tree):
    __slots__ = ("_found", "_store")

    def __init__(self, store: TreeStore, next_id: int) -> None:
        self._store = store
        self._found = _Nodes(store)
        self.next_id = next_id

    @property
    def nodes(self) -> Mapping[int, Node]:
        return self._found

    def forget(self, ids: Iterable[int]) -> None:
        """The file has others of them than it had."""
        for file_id in ids:
            self._found.forget(file_id)

    def _add(self, file_id: int, node: Node) -> None:
        self._store.change(
            "INSERT INTO nodes (id, kind, mode, uid, gid, target) VALUES (?,?,?,?,?,?)",
            (file_id, int(node.kind), node.mode, node.uid, node.gid, node.target or None),
        )

    def _drop(self, file_id: int) -> None:
        self._found.forget(file_id)
        self._store.change("DELETE FROM nodes WHERE id = ?", (file_id,))

    def _name(self, file_id: int, parent: int, name: bytes) -> None:
        self._found.forget(file_id)
        self._store.change("INSERT INTO names VALUES (?,?,?)", (parent, name, file_id))

    def _unname(self, file_id: int, parent: int, name: bytes) -> None:
        self._found.forget(file_id)
        self._store.change("DELETE FROM names WHERE parent = ? AND name = ?", (parent, name))

    def _set_attributes(self, file_id: int, mode: int, uid: int, gid: int) -> None:
        self._found.forget(file_id)
        self._store.change(
            "UPDATE nodes SET mode = ?, uid = ?, gid = ? WHERE id = ?", (mode, uid, gid, file_id)
        )

    def unidentified(self) -> set[int]:
        """Ids whose inode is not known: few."""
        return {row[0] for row in self._store.execute("SELECT id FROM nodes WHERE inode IS NULL")}


class _Nodes(Mapping[int, Node]):
    def __init__(self, store: TreeStore) -> None:
        self._store = store
        self._lately: dict[int, Node] = {}

    def forget(self, file_id: int) -> None:
        self._lately.pop(file_id, None)

    def __getitem__(self, file_id: int) -> Node:
        node = self._lately.get(file_id)
        if node is None:
            node = self._lately[file_id] = self._read(file_id)
            _shrink(self._lately)
        return node

    def _read(self, file_id: int) -> Node:
        row = self._store.execute(
            "SELECT kind, mode, uid, gid, target FROM nodes WHERE id = ?", (file_id,)
        ).fetchone()
        if row is None:
            raise KeyError(file_id)
        kind, mode, uid, gid, target = row
        entries = set(self._store.execute("SELECT parent, name FROM names WHERE id = ?", (file_id,)))
        is_directory = kind == Kind.DIR
        children: Mapping[bytes, int] = _Children(self._store, file_id) if is_directory else {}
        return Node(Kind(kind), mode, uid, gid, target or b"", entries, children)

    def __contains__(self, file_id: object) -> bool:
        if file_id in self._lately:
            return True
        found = self._store.execute("SELECT 1 FROM nodes WHERE id = ?", (file_id,)).fetchone()
        return found is not None

    def __iter__(self) -> Iterator[int]:
        return _stepwise(self._store, "SELECT id FROM nodes WHERE id > ? ORDER BY id LIMIT 1000")

    def __len__(self) -> int:
        return _count(self._store, "SELECT count(*) FROM nodes")


class _Children(Mapping[bytes, int]):
    """Names below one directory, as they are when asked."""

    def __init__(self, store: TreeStore, directory: int) -> None:
        self._store = store
        self._directory = directory

    def __getitem__(self, name: bytes) -> int:
        row = self._store.execute(
            "SELECT id FROM names WHERE parent = ? AND name = ?", (self._directory, name)
        ).fetchone()
        if row is None:
            raise KeyError(name)
        return int(row[0])

    def __contains__(self, name: object) -> bool:
        query = "SELECT 1 FROM names WHERE parent = ? AND name = ?"
        return self._store.execute(query, (self._directory, name)).fetchone() is not None

    def __iter__(self) -> Iterator[bytes]:
        rows = self._store.execute("SELECT name FROM names WHERE parent = ?", (self._directory,)).fetchall()
        return (row[0] for row in rows)

    def __len__(self) -> int:
        return _count(self._store, "SELECT count(*) FROM names WHERE parent = ?", (self._directory,))

    def __bool__(self) -> bool:
        query = "SELECT 1 FROM names WHERE parent = ? LIMIT 1"
        return self._store.execute(query, (self._directory,)).fetchone() is not None


class _Column(MutableMapping[int, V]):
    """What some ids have, beside their node. Setting it for an id that is not in the tree does nothing."""

    # SELECT and UPDATE of one id, and what there is of all, in order.
    _get: str
    _set: str
    _ids: str
    _how_many: str

    def __init__(self, store: TreeStore) -> None:
        self._store = store

    def _pack(self, value: V) -> tuple[Any, ...]:
        raise NotImplementedError

    def _unpack(self, row: tuple[Any, ...]) -> V:
        raise NotImplementedError

    def __getitem__(self, file_id: int) -> V:
        row = self._store.execute(self._get, (file_id,)).fetchone()
        if row is None:
            raise KeyError(file_id)
        return self._unpack(row)

    def __setitem__(self, file_id: int, value: V) -> None:
        self._store.change(self._set, (*self._pack(value), file_id))

    def __delitem__(self, file_id: int) -> None:
        if file_id not in self:
            raise KeyError(file_id)
        self._store.change(self._set, (*([None] * self._set.count("?"))[1:], file_id))

    def __iter__(self) -> Iterator[int]:
        return _stepwise(self._store, self._ids)

    def __len__(self) -> int:
        return _count(self._store, self._how_many)


class Identities(_Column[Identity]):
    _get = "SELECT device, inode, generation FROM nodes WHERE id = ? AND inode IS NOT NULL"
    _set = "UPDATE nodes SET device = ?, inode = ?, generation = ? WHERE id = ?"
    _ids = "SELECT id FROM nodes WHERE id > ? AND inode IS NOT NULL ORDER BY id LIMIT 1000"
    _how_many = "SELECT count(*) FROM nodes WHERE inode IS NOT NULL"

    def _pack(self, value: Identity) -> tuple[Any, ...]:
        return signed(value.device), signed(value.inode), value.generation

    def _unpack(self, row: tuple[Any, ...]) -> Identity:
        return Identity(unsigned(row[0]), unsigned(row[1]), row[2])

    def holder(self, inode: int) -> int | None:
        """The id that has an inode number; there is one at most in a tree that is one file system."""
        row = self._store.execute("SELECT id FROM nodes WHERE inode = ?", (signed(inode),)).fetchone()
        return None if row is None else int(row[0])


class Fingerprints(_Column[tuple[int, int, int]]):
    _get = "SELECT size, mtime, ctime FROM nodes WHERE id = ? AND size IS NOT NULL"
    _set = "UPDATE nodes SET size = ?, mtime = ?, ctime = ? WHERE id = ?"
    _ids = "SELECT id FROM nodes WHERE id > ? AND size IS NOT NULL ORDER BY id LIMIT 1000"
    _how_many = "SELECT count(*) FROM nodes WHERE size IS NOT NULL"

    def _pack(self, value: tuple[int, int, int]) -> tuple[Any, ...]:
        return value

    def _unpack(self, row: tuple[Any, ...]) -> tuple[int, int, int]:
        return row[0], row[1], row[2]


def _take_row(
    row: tuple[Any, ...],
    entries: set[tuple[int, bytes]],
    nodes: dict[int, Node],
    identities: dict[int, Identity],
    prints: dict[int, tuple[int, int, int]],
) -> None:
    file_id, kind, mode, uid, gid, target, device, inode, generation, *print_ = row
    nodes[file_id] = Node(Kind(kind), mode, uid, gid, target or b"", entries)
    if inode is not None:
        identities[file_id] = Identity(unsigned(device), unsigned(inode), generation)
    if print_[0] is not None:
        prints[file_id] = (print_[0], print_[1], print_[2])


def _node_rows(state: trees.TreeState, nodes: Mapping[int, Node]) -> Iterator[tuple[Any, ...]]:
    for file_id, node in nodes.items():
        identity, print_ = state.identities.get(file_id), state.fingerprints.get(file_id)
        where = (
            (None, None, None)
            if identity is None
            else (signed(identity.device), signed(identity.inode), identity.generation)
        )
        yield (
            file_id,
            int(node.kind),
            node.mode,
            node.uid,
            node.gid,
            node.target or None,
            *where,
            *(print_ if print_ is not None else (None, None, None)),
        )


def _name_rows(nodes: Mapping[int, Node]) -> Iterator[tuple[int, bytes, int]]:
    for file_id, node in nodes.items():
        for parent, name in node.entries:
            yield parent, name, file_id


def _stepwise(store: TreeStore, query: str) -> Iterator[int]:
    """Ids in order, some at a time: the tree may change while they are used."""
    last = ROOT_ID - 1
    while rows := store.execute(query, (last,)).fetchall():
        for (last,) in rows:
            yield last


def _count(store: TreeStore, query: str, values: tuple[Any, ...] = ()) -> int:
    return int(store.execute(query, values).fetchone()[0])


def _shrink(lately: dict[int, Any]) -> None:
    """The older half goes when there are too many: a dictionary keeps the order of its making."""
    if len(lately) > _REMEMBERED:
        for key in list(itertools.islice(lately, _REMEMBERED // 2)):
            del lately[key]


def signed(number: int) -> int:
    return number - _WRAP if number >= _SIGN else number


def unsigned(number: int) -> int:
    return number % _WRAP


def _connect(path: Path, pages_kib: int = PAGES_KIB) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    database.execute(f"PRAGMA cache_size = -{pages_kib}")
    database.execute("PRAGMA temp_store = MEMORY")
    return database


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    for suffix in ("-wal", "-shm", "-journal", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise errors.Transient(
            f"the tree in {path} could not be kept: {error}",
            reason="tree-not-kept",
            hint="free space on that disk",
            path=path,
        ) from error
    except (sqlite3.DatabaseError, ValueError, KeyError) as error:
        raise errors.Corrupt(
            f"the tree in {path} cannot be read ({error!r}); it was left where it is",
            reason="malformed-tree-store",
            hint="the replica can be rebuilt from the log",
            path=path,
        ) from error
