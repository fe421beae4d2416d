"""The names and attributes of a volume: which file id stands under which entry, and what each id is.

A tree is a model, without content, in memory (``Tree``) or in a file (``diffkeeper.tree_store``). The capture
agent keeps one to give ids and to resolve paths in the order of the log; a replica keeps one to turn ids back
into paths. Both feed it the same deltas, so both agree. ``encode``/``decode`` make the tree state that is
handed over between them at a position.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
from blake3 import blake3

from diffkeeper.domain import errors, positions
from diffkeeper.domain.deltas import FIRST_FREE_ID, NAMING, ROOT_ID, Delta, Op


class Kind(enum.IntEnum):
    FILE = 1
    DIR = 2
    SYMLINK = 3
    FIFO = 4


_KIND_OF = {Op.CREATE: Kind.FILE, Op.MKDIR: Kind.DIR, Op.SYMLINK: Kind.SYMLINK, Op.MKFIFO: Kind.FIFO}


@dataclass(slots=True)
class Node:
    kind: Kind
    mode: int
    uid: int
    gid: int
    target: bytes = b""  # of a symlink
    # Every (parent id, name) under which the node stands; a directory has one, an unlinked file none.
    entries: set[tuple[int, bytes]] = field(default_factory=set)
    children: Mapping[bytes, int] = field(default_factory=dict)  # of a directory: name → id


class Tree:
    """Not safe for threads; one owner. ``apply`` refuses what cannot be, and then changes nothing.

    This one is in memory. What ``nodes`` gives is for looking at: whoever keeps a tree elsewhere overrides that
    and the methods under "keeping", and gives copies.
    """

    __slots__ = ("_children", "_nodes", "next_id")

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        # The same dictionaries as those of the nodes, which only this class may change.
        self._children: dict[int, dict[bytes, int]] = {}
        self.next_id = FIRST_FREE_ID
        self._add(ROOT_ID, Node(Kind.DIR, 0o755, 0, 0))

    # -- keeping; callers have checked that it makes sense ---------------------------------------------------

    @property
    def nodes(self) -> Mapping[int, Node]:
        return self._nodes

    def ids(self) -> Iterator[int]:
        """Every id, while the tree may change: one that comes or goes meanwhile is there or not."""
        return iter(list(self._nodes))

    def _add(self, file_id: int, node: Node) -> None:
        self._nodes[file_id] = node
        if node.kind is Kind.DIR:
            self._children[file_id] = {}
            node.children = self._children[file_id]

    def _drop(self, file_id: int) -> None:
        del self._nodes[file_id]
        self._children.pop(file_id, None)

    def _name(self, file_id: int, parent: int, name: bytes) -> None:
        self._children[parent][name] = file_id
        self._nodes[file_id].entries.add((parent, name))

    def _unname(self, file_id: int, parent: int, name: bytes) -> None:
        del self._children[parent][name]
        self._nodes[file_id].entries.discard((parent, name))

    def _set_attributes(self, file_id: int, mode: int, uid: int, gid: int) -> None:
        node = self._nodes[file_id]
        node.mode, node.uid, node.gid = mode, uid, gid

    # -- asking and taking -----------------------------------------------------------------------------------

    def child(self, parent: int, name: bytes) -> int | None:
        node = self.nodes.get(parent)
        return None if node is None else node.children.get(name)

    def path(self, file_id: int) -> bytes | None:
        """One path of ``file_id`` below the root (``b""`` for the root itself), or None when it has no
        name.
        """
        parts: list[bytes] = []
        while file_id != ROOT_ID:
            node = self.nodes.get(file_id)
            if node is None or not node.entries:
                return None
            file_id, name = next(iter(node.entries)) if len(node.entries) == 1 else min(node.entries)
            parts.append(name)
        return b"/".join(reversed(parts))

    def walk(self, path: bytes) -> int | None:
        """The id at a path relative to the root, symlinks not followed; None when there is none."""
        at: int | None = ROOT_ID
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            at = self.child(at, name) if at is not None else None
        return at

    def paths(self) -> Iterator[tuple[bytes, int]]:
        """Every (path, id) below the root: parents before children, the names of a directory in byte
        order.
        """
        stack = [(b"", ROOT_ID)]
        while stack:
            prefix, directory = stack.pop()
            below: list[tuple[bytes, int]] = []
            for name, file_id in sorted(self.nodes[directory].children.items()):
                path = prefix + name
                if self.nodes[file_id].kind is Kind.DIR:
                    below.append((path + b"/", file_id))
                yield path, file_id
            stack.extend(reversed(below))

    def apply(self, delta: Delta) -> None:
        """Take one delta. Content operations change nothing here. Raises Corrupt when the delta contradicts
        the tree.
        """
        op, args = delta.op, delta.args
        match op:
            case Op.CREATE | Op.MKDIR | Op.MKFIFO:
                parent, name, mode, uid, gid = args
                self._make(delta.file_id, Node(_KIND_OF[op], mode, uid, gid), parent, name)
            case Op.SYMLINK:
                parent, name, target, uid, gid = args
                self._make(delta.file_id, Node(Kind.SYMLINK, 0o777, uid, gid, target), parent, name)
            case Op.LINK:
                parent, name = args
                if self._node(delta.file_id).kind is Kind.DIR:
                    raise _contradiction("a directory cannot have a second name")
                self._check_free(parent, name)
                self._name(delta.file_id, parent, name)
            case Op.UNLINK | Op.RMDIR:
                self._unlink(delta, *args)
            case Op.RENAME:
                self._rename(delta.file_id, *args)
            case Op.ATTR:
                node, attrs = self._node(delta.file_id), args[0]
                if not attrs.keys().isdisjoint(_KEPT_ATTRIBUTES):
                    mode, uid = attrs.get("mode", node.mode), attrs.get("uid", node.uid)
                    self._set_attributes(delta.file_id, mode, uid, attrs.get("gid", node.gid))
            case _:
                pass

    def bring_back(self, moved: Iterable[int], nodes: Mapping[int, Node]) -> None:
        """Undo: ids of ``moved`` leave their names, and go if ``nodes`` has them not; then those of ``nodes`` stand
        where it says.
        """
        for file_id in moved:
            for parent, name in list(self.nodes[file_id].entries):
                self._unname(file_id, parent, name)
        for file_id in moved:
            if file_id not in nodes:
                self._drop(file_id)
        for file_id, old in nodes.items():
            if file_id not in self.nodes:
                self._add(file_id, Node(old.kind, old.mode, old.uid, old.gid, old.target))
        for file_id, old in nodes.items():
            for parent, name in old.entries:
                self._name(file_id, parent, name)

    @staticmethod
    def is_changed_by(delta: Delta) -> bool:
        """Whether taking a delta, which others have found to be right, would change anything here."""
        if delta.op is Op.ATTR:
            return not delta.args[0].keys().isdisjoint(_KEPT_ATTRIBUTES)
        return delta.op in NAMING

    def _node(self, file_id: int) -> Node:
        node = self.nodes.get(file_id)
        if node is None:
            raise _contradiction(f"file id {file_id} is not known")
        return node

    def _directory(self, file_id: int) -> Node:
        node = self._node(file_id)
        if node.kind is not Kind.DIR:
            raise _contradiction(f"file id {file_id} is not a directory")
        return node

    def _check_free(self, parent: int, name: bytes) -> None:
        if name in self._directory(parent).children:
            raise _contradiction(f"{name!r} exists already in directory {parent}")

    def _make(self, file_id: int, node: Node, parent: int, name: bytes) -> None:
        if file_id in self.nodes or file_id < FIRST_FREE_ID:
            raise _contradiction(f"file id {file_id} exists already or cannot be given")
        self._check_free(parent, name)
        self._add(file_id, node)
        self._name(file_id, parent, name)
        self.next_id = max(self.next_id, file_id + 1)

    def _unlink(self, delta: Delta, parent: int, name: bytes) -> None:
        directory = self._directory(parent)
        if directory.children.get(name) != delta.file_id:
            raise _contradiction(f"{name!r} in directory {parent} is not file id {delta.file_id}")
        node = self._node(delta.file_id)
        if (node.kind is Kind.DIR) != (delta.op is Op.RMDIR):
            raise _contradiction(f"{name!r} in directory {parent} is of another kind")
        if node.children:
            raise _contradiction(f"directory {name!r} is not empty")
        self._leave(delta.file_id, node, parent, name)

    def _leave(self, file_id: int, node: Node, parent: int, name: bytes) -> None:
        """Take one name away, and the node with its last one."""
        is_last = node.entries == {(parent, name)}
        self._unname(file_id, parent, name)
        if is_last:
            self._drop(file_id)

    def _rename(
        self, file_id: int, src: int, src_name: bytes, dst: int, dst_name: bytes, exchange: bool
    ) -> None:
        source, target = self._directory(src), self._directory(dst)
        if source.children.get(src_name) != file_id:
            raise _contradiction(f"{src_name!r} in directory {src} is not file id {file_id}")
        other = target.children.get(dst_name)
        if exchange and other is None:
            raise _contradiction(f"there is nothing to exchange with at {dst_name!r}")
        if self._is_below(dst, file_id) or (exchange and other is not None and self._is_below(src, other)):
            raise _contradiction("a directory cannot be moved into itself")
        if other == file_id:
            return  # two names of one file: rename(2) does nothing
        if other is not None and not exchange:
            if self.nodes[other].children:
                raise _contradiction(f"directory {dst_name!r} is not empty")
            if (self.nodes[other].kind is Kind.DIR) != (self.nodes[file_id].kind is Kind.DIR):
                raise _contradiction(f"{dst_name!r} is of another kind")
        self._unname(file_id, src, src_name)
        if other is not None and exchange:
            self._unname(other, dst, dst_name)
            self._name(other, src, src_name)
        elif other is not None:
            self._leave(other, self.nodes[other], dst, dst_name)
        self._name(file_id, dst, dst_name)

    def _is_below(self, directory: int, ancestor: int) -> bool:
        """Whether ``directory`` is ``ancestor`` or stands below it."""
        at = directory
        while at != ROOT_ID:
            if at == ancestor:
                return True
            at = next(iter(self.nodes[at].entries))[0]
        return at == ancestor

    def copy(self) -> Tree:
        copies = (
            (file_id, Node(node.kind, node.mode, node.uid, node.gid, node.target, set(node.entries)))
            for file_id, node in self._nodes.items()
        )
        return Tree.of(copies, self.next_id)

    @classmethod
    def of(cls, nodes: Iterable[tuple[int, Node]], next_id: int) -> Tree:
        """From nodes with their entries, in any order; raises KeyError when one stands below none of them."""
        tree = cls()
        tree._nodes.clear()
        tree._children.clear()
        places = []
        for file_id, node in nodes:
            places.append((file_id, node.entries))
            node.entries = set()
            tree._add(file_id, node)
        for file_id, entries in places:
            for parent, name in entries:
                tree._name(file_id, parent, name)
        tree.next_id = next_id
        return tree


_KEPT_ATTRIBUTES = frozenset({"mode", "uid", "gid"})


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file id is on this machine's file system; tells a file apart from another that took its inode
    number.
    """

    device: int
    inode: int
    generation: int  # 0 where the file system has none


@dataclass(slots=True)
class TreeState:
    """A tree at a position, with the local identity of each id: what a role is handed over with."""

    volume: str
    position: positions.Position
    frame_hash: bytes
    stamp: int
    tree: Tree
    identities: dict[int, Identity]
    # (size, mtime ns, ctime ns) of files when the state was made, where its maker knew them: a file that
    # still has them need not be read again.
    fingerprints: dict[int, tuple[int, int, int]] = field(default_factory=dict)


_STATE_VERSION = 1
_STATE_MAGIC = b"DKT1"
_STATE_HEAD_BYTES = len(_STATE_MAGIC) + 32


def encode(state: TreeState) -> bytes:
    """The tree state as a file's bytes, with its own checksum in front."""
    nodes = [
        [
            file_id,
            int(node.kind),
            node.mode,
            node.uid,
            node.gid,
            node.target,
            sorted([parent, name] for parent, name in node.entries),
        ]
        for file_id, node in state.tree.nodes.items()
    ]
    packed: bytes = msgpack.packb(
        {
            "v": _STATE_VERSION,
            "vol": state.volume,
            "pos": [state.position.epoch, state.position.sequence],
            "hash": state.frame_hash,
            "stamp": state.stamp,
            "next": state.tree.next_id,
            "nodes": nodes,
            "ids": [[file_id, i.device, i.inode, i.generation] for file_id, i in state.identities.items()],
            "prints": [[file_id, *print_] for file_id, print_ in state.fingerprints.items()],
        },
        use_bin_type=True,
    )
    return _STATE_MAGIC + blake3(packed).digest() + packed


def decode(data: bytes) -> TreeState:
    """A tree state from a disk of this site; raises Corrupt for any other bytes than ``encode`` made."""
    try:
        packed = memoryview(data)[_STATE_HEAD_BYTES:]
        if data[:_STATE_HEAD_BYTES] != _STATE_MAGIC + blake3(packed).digest():
            raise ValueError("its checksum does not hold")
        fields: dict[str, Any] = msgpack.unpackb(packed, raw=False, strict_map_key=True)
        if fields["v"] != _STATE_VERSION:
            raise ValueError(f"version {fields['v']}")
        nodes = (
            (file_id, Node(Kind(kind), mode, uid, gid, target, {(parent, name) for parent, name in entries}))
            for file_id, kind, mode, uid, gid, target, entries in fields["nodes"]
        )
        tree = Tree.of(nodes, fields["next"])
        identities = {file_id: Identity(dev, ino, gen) for file_id, dev, ino, gen in fields["ids"]}
        return TreeState(
            fields["vol"],
            positions.Position(*fields["pos"]),
            fields["hash"],
            fields["stamp"],
            tree,
            identities,
            {file_id: (size, mtime, ctime) for file_id, size, mtime, ctime in fields["prints"]},
        )
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise errors.Corrupt(
            f"a tree state cannot be read ({error!r}); it was left where it is",
            reason="malformed-tree-state",
            hint="the replica can be rebuilt from the log",
        ) from error


def _contradiction(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a delta contradicts the tree: {why}",
        reason="tree-contradiction",
        hint="dkctl verify compares the replica with the log",
    )
