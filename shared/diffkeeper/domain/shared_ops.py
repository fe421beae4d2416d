"""What a site says of a shared volume: the records of its merge log, and the bytes they travel as.

A record is named by its ``Dot``: the site that said it and its number there, counted from 1 without a gap. A
``Vector`` says how far the log of each site is known. An *entry* is one name in the tree; an *object* is what
stands behind one or, with hard links, several entries. Ids are 16 bytes, ``ROOT`` is empty. Everything decoded
here came over the network: sizes, types and names are checked, whatever is left over is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack
from blake3 import blake3

from diffkeeper.domain import clocks, deltas, errors, limits, trees

ROOT = b""
ID_BYTES = 16
# A known site costs every vector an element.
SITES_MAX = 256
# The whole of one record, a merger's update included; a file whose document is larger is not shared.
RECORD_MAX_BYTES = 64 * 1024 * 1024
MERGER_NAME_MAX = 40

Vector = dict[str, int]


class Dot(NamedTuple):
    site: str
    number: int


@dataclass(frozen=True, slots=True)
class Place:
    """An entry stands under this name from now on. Carries what the entry is, so that it can come before
    all others of the entry.
    """

    entry: bytes
    object: bytes
    kind: trees.Kind
    target: bytes  # of a symlink
    parent: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Remove:
    """An entry goes away, as far as what was done to it is in ``seen``."""

    entry: bytes
    seen: Vector


@dataclass(frozen=True, slots=True)
class Edit:
    """New content: an update of the document of an object, in the words of the merger."""

    object: bytes
    merger: str
    update: bytes


@dataclass(frozen=True, slots=True)
class Attributes:
    """Mode and time of an object; the last one counts."""

    object: bytes
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The site has taken in this much of the others' logs."""

    vector: Vector


@dataclass(frozen=True, slots=True)
class Resolve:
    """A conflict (by its id) was dealt with, and how."""

    conflict: bytes
    choice: str


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a large file, that an edit after it refers to by its digest."""

    digest: bytes
    data: bytes


Op = Place | Remove | Edit | Attributes | Seen | Resolve | Block


@dataclass(frozen=True, slots=True)
class Record:
    dot: Dot
    stamp: clocks.Stamp
    op: Op


_TAGS: dict[type[Any], int] = {Place: 1, Remove: 2, Edit: 3, Attributes: 4, Seen: 5, Resolve: 6, Block: 7}
BLOCK_MAX_BYTES = 4 * 1024 * 1024
_CHOICE_MAX = 64


def derived_id(*parts: bytes) -> bytes:
    """An id that two sites give to the same thing without asking each other."""
    hasher = blake3()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.digest(ID_BYTES)


def encode(record: Record) -> bytes:
    op = record.op
    match op:
        case Place():
            rest: list[Any] = [op.entry, op.object, int(op.kind), op.target, op.parent, op.name]
        case Remove():
            rest = [op.entry, op.seen]
        case Edit():
            rest = [op.object, op.merger, op.update]
        case Attributes():
            rest = [op.object, op.mode, op.mtime_ns]
        case Seen():
            rest = [op.vector]
        case Resolve():
            rest = [op.conflict, op.choice]
        case Block():
            rest = [op.digest, op.data]
    head = [_TAGS[type(op)], record.dot.number, record.stamp]
    packed: bytes = msgpack.packb(head + rest, use_bin_type=True)
    return packed


def decode(packed: bytes | memoryview, site: str) -> Record:
    """A record from the log of ``site``; raises Corrupt for anything that ``encode`` does not make."""
    if len(packed) > RECORD_MAX_BYTES:
        raise _bad(site, f"{len(packed)} bytes exceed the limit of {RECORD_MAX_BYTES}")
    try:
        fields = msgpack.unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            max_array_len=9,
            max_map_len=SITES_MAX,
            max_bin_len=RECORD_MAX_BYTES,
            max_str_len=255,
            max_ext_len=0,
            object_pairs_hook=_vector,
        )
        tag, number, stamp, *rest = fields
        if not _is_int(number, 1) or not _is_int(stamp, 0) or stamp > clocks.STAMP_MAX:
            raise ValueError("its number or stamp is out of bounds")
        return Record(Dot(site, number), stamp, _OPS[tag](rest))
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise _bad(site, repr(error)) from error


def _place(rest: list[Any]) -> Place:
    entry, object_id, kind, target, parent, name = rest
    if not _is_id(entry) or not _is_id(object_id) or not (parent == ROOT or _is_id(parent)):
        raise ValueError("an id is malformed")
    kind = trees.Kind(kind)
    if not isinstance(target, bytes) or len(target) > limits.SYMLINK_MAX_BYTES or b"\0" in target:
        raise ValueError("a target is malformed")
    if (kind is trees.Kind.SYMLINK) != bool(target) or (kind is trees.Kind.DIR and entry != object_id):
        raise ValueError("kind and content contradict each other")
    if not isinstance(parent, bytes) or not deltas.is_name(name):
        raise ValueError("a name that cannot be one")
    return Place(entry, object_id, kind, target, parent, name)


def _remove(rest: list[Any]) -> Remove:
    entry, seen = rest
    if not _is_id(entry) or not isinstance(seen, dict):
        raise ValueError("a removal is malformed")
    return Remove(entry, seen)


def _edit(rest: list[Any]) -> Edit:
    object_id, merger, update = rest
    if not _is_id(object_id) or not isinstance(update, bytes):
        raise ValueError("an edit is malformed")
    if not isinstance(merger, str) or not 0 < len(merger) <= MERGER_NAME_MAX:
        raise ValueError("a merger's name is malformed")
    return Edit(object_id, merger, update)


def _attributes(rest: list[Any]) -> Attributes:
    object_id, mode, mtime_ns = rest
    # Set-id bits never travel: a site could make another run its program as root.
    if not _is_id(object_id) or not _is_int(mode, 0) or mode > 0o1777 or not _is_int(mtime_ns, 0):
        raise ValueError("attributes are malformed")
    if mtime_ns >= 1 << 63:
        raise ValueError("a time is out of bounds")
    return Attributes(object_id, mode, mtime_ns)


def _seen(rest: list[Any]) -> Seen:
    (vector,) = rest
    if not isinstance(vector, dict):
        raise ValueError("a vector is malformed")
    return Seen(vector)


def _resolve(rest: list[Any]) -> Resolve:
    conflict, choice = rest
    if not _is_id(conflict) or not isinstance(choice, str) or not 0 < len(choice) <= _CHOICE_MAX:
        raise ValueError("a resolution is malformed")
    return Resolve(conflict, choice)


def _block(rest: list[Any]) -> Block:
    digest, data = rest
    if not isinstance(data, bytes) or not 0 < len(data) <= BLOCK_MAX_BYTES:
        raise ValueError("a block is malformed")
    if blake3(data).digest() != digest:
        raise ValueError("a block is not what its digest says")
    return Block(digest, data)


_OPS: dict[int, Any] = {1: _place, 2: _remove, 3: _edit, 4: _attributes, 5: _seen, 6: _resolve, 7: _block}


def _vector(pairs: list[tuple[Any, Any]]) -> Vector:
    """The only map there is."""
    vector: Vector = dict(pairs)
    if len(vector) != len(pairs):
        raise ValueError("a site stands twice")
    if not all(isinstance(site, str) and _is_int(number, 0) for site, number in pairs):
        raise ValueError("a vector is malformed")
    return vector


def _is_id(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == ID_BYTES


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 64


def merged(one: Vector, other: Vector) -> Vector:
    """The furthest of both, site by site."""
    return {site: max(one.get(site, 0), other.get(site, 0)) for site in one.keys() | other.keys()}


def covers(vector: Vector, other: Vector) -> bool:
    """Whether ``vector`` has everything of ``other``."""
    return all(vector.get(site, 0) >= number for site, number in other.items())


def _bad(site: str, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a record of the merge log of {site} is malformed: {why}; nothing of it was taken",
        reason="malformed-record",
        hint=f"{site} writes what it must not; look at its replicator",
        site=site,
    )
