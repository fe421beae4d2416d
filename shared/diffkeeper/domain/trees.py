"""The names and attributes of a volume: which file id stands under which entry, and what each id is.

A ``Tree`` is a model in memory, without content. The capture agent keeps one to give ids and to resolve paths
in the order of the log; a replica keeps one to turn ids back into paths. Both feed it the same deltas, so
both agree. ``encode``/``decode`` make the tree state that is handed over between them at a position.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
from blake3 import blake3

from diffkeeper.domain import errors, positions
from diffkeeper.domain.deltas import FIRST_FREE_ID, ROOT_ID, Delta, Op


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
    children: dict[bytes, int] = field(default_factory=dict)  # of a directory: name → id


class Tree:
    """Not safe for threads; one owner. ``apply`` refuses what cannot be, and then changes nothing."""

    __slots__ = ("next_id", "nodes")

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {ROOT_ID: Node(Kind.DIR, 0o755, 0, 0)}
        self.next_id = FIRST_FREE_ID

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
                self._enter(delta.file_id, parent, name)
            case Op.UNLINK | Op.RMDIR:
                self._unlink(delta, *args)
            case Op.RENAME:
                self._rename(delta.file_id, *args)
            case Op.ATTR:
                node = self._node(delta.file_id)
                attrs = args[0]
                node.mode = attrs.get("mode", node.mode)
                node.uid = attrs.get("uid", node.uid)
                node.gid = attrs.get("gid", node.gid)
            case _:
                pass

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

    def _make(self, file_id: int, node: Node, parent: int, name: bytes) -> None:
        if file_id in self.nodes or file_id < FIRST_FREE_ID:
            raise _contradiction(f"file id {file_id} exists already or cannot be given")
        directory = self._directory(parent)
        if name in directory.children:
            raise _contradiction(f"{name!r} exists already in directory {parent}")
        node.entries.add((parent, name))
        directory.children[name] = file_id
        self.nodes[file_id] = node
        self.next_id = max(self.next_id, file_id + 1)

    def _enter(self, file_id: int, parent: int, name: bytes) -> None:
        directory = self._directory(parent)
        if name in directory.children:
            raise _contradiction(f"{name!r} exists already in directory {parent}")
        directory.children[name] = file_id
        self._node(file_id).entries.add((parent, name))

    def _unlink(self, delta: Delta, parent: int, name: bytes) -> None:
        directory = self._directory(parent)
        if directory.children.get(name) != delta.file_id:
            raise _contradiction(f"{name!r} in directory {parent} is not file id {delta.file_id}")
        node = self._node(delta.file_id)
        if (node.kind is Kind.DIR) != (delta.op is Op.RMDIR):
            raise _contradiction(f"{name!r} in directory {parent} is of another kind")
        if node.children:
            raise _contradiction(f"directory {name!r} is not empty")
        del directory.children[name]
        self._drop_entry(delta.file_id, parent, name)

    def _drop_entry(self, file_id: int, parent: int, name: bytes) -> None:
        node = self.nodes[file_id]
        node.entries.discard((parent, name))
        if not node.entries:
            del self.nodes[file_id]

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
        node = self.nodes[file_id]
        del source.children[src_name]
        node.entries.discard((src, src_name))
        if other is not None:
            del target.children[dst_name]
            if exchange:
                replaced = self.nodes[other]
                replaced.entries.discard((dst, dst_name))
                source.children[src_name] = other
                replaced.entries.add((src, src_name))
            else:
                self._drop_entry(other, dst, dst_name)
        target.children[dst_name] = file_id
        node.entries.add((dst, dst_name))

    def _is_below(self, directory: int, ancestor: int) -> bool:
        """Whether ``directory`` is ``ancestor`` or stands below it."""
        at = directory
        while at != ROOT_ID:
            if at == ancestor:
                return True
            at = next(iter(self.nodes[at].entries))[0]
        return at == ancestor


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
        tree = Tree()
        tree.nodes.clear()
        links: list[tuple[int, int, bytes]] = []
        for file_id, kind, mode, uid, gid, target, entries in fields["nodes"]:
            tree.nodes[file_id] = Node(Kind(kind), mode, uid, gid, target)
            links.extend((file_id, parent, name) for parent, name in entries)
        for file_id, parent, name in links:
            tree.nodes[file_id].entries.add((parent, name))
            tree.nodes[parent].children[name] = file_id
        tree.next_id = fields["next"]
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
