"""The names of a shared volume: a tree that every site changes and that comes out the same at all of them.

Two things are merged apart from each other. *Where* an entry stands is a replicated tree move: placements are
done in the order of their stamps, one that comes late undoes those after it, is done, and they are done
again; a placement that would make a cycle has no effect (Kleppmann et al., "A highly-available move operation
for replicated trees", 2021). *Whether* it is there is an observed-remove flag: a removal takes away what its
site had seen, so that anything done to the entry elsewhere keeps it. A directory stays for as long as
something below it does. Pure; the order in which records of different sites come does not matter, those of
one site come in their order, once.

``children`` is the tree as people see it: of entries that claim one name the oldest claim has it, the others
stand beside it under a name made of theirs, their site and their id.
"""

from __future__ import annotations

import bisect
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from diffkeeper.domain import clocks, limits, shared_ops, trees
from diffkeeper.domain.shared_ops import ROOT, Dot, Vector

# The object of an entry that nobody has placed yet.
UNKNOWN = b""


class Claim(NamedTuple):
    """A placement in the order in which all sites do them."""

    stamp: clocks.Stamp
    site: str
    number: int
    entry: bytes
    parent: bytes
    name: bytes


@dataclass(slots=True)
class Entry:
    object: bytes
    kind: trees.Kind
    target: bytes
    # Where it stands, and where it stood before the first placement of the log that is kept.
    at: Claim | None = None
    base: Claim | None = None
    # Numbers of the last placement by each site, and of what removals had seen.
    kept: Vector = field(default_factory=dict)
    removed: Vector = field(default_factory=dict)
    # The removals themselves: once all have seen them the entry can be forgotten.
    removed_by: Vector = field(default_factory=dict)


@dataclass(slots=True)
class Object:
    entries: set[bytes] = field(default_factory=set)
    # The last edit by each site.
    edited: Vector = field(default_factory=dict)
    mode: int = 0
    mtime_ns: int = 0
    # Of the attributes: (stamp, site).
    attributes_at: tuple[clocks.Stamp, str] = (0, "")


@dataclass(slots=True)
class Change:
    """What taking a record changed: directories whose children may look otherwise, and objects."""

    directories: set[bytes] = field(default_factory=set)
    objects: set[bytes] = field(default_factory=set)
    entries: set[bytes] = field(default_factory=set)
    # Entries that a removal and an edit met at, and that stay.
    revived: set[bytes] = field(default_factory=set)


class SharedTree:
    """Not safe for threads; one owner."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.objects: dict[bytes, Object] = {}
        # Placements that may still be undone, in order.
        self.log: list[Claim] = []
        self._below: dict[bytes, set[bytes]] = {}

    # -- taking records --------------------------------------------------------------------------------------

    def apply(self, record: shared_ops.Record) -> Change:
        change = Change()
        match record.op:
            case shared_ops.Place() as op:
                self._place(record.dot, record.stamp, op, change)
            case shared_ops.Remove() as op:
                self._remove(record.dot, op, change)
            case shared_ops.Edit() as op:
                before = self._alive_entries(op.object)
                found = self._object(op.object)
                found.edited[record.dot.site] = max(record.dot.number, found.edited.get(record.dot.site, 0))
                change.objects.add(op.object)
                for entry in self._alive_entries(op.object) - before:
                    change.revived.add(entry)
                    self._touch(entry, change)
                change.entries |= found.entries
            case shared_ops.Attributes() as op:
                found = self._object(op.object)
                if (record.stamp, record.dot.site) > found.attributes_at:
                    found.mode, found.mtime_ns = op.mode, op.mtime_ns
                    found.attributes_at = (record.stamp, record.dot.site)
                    change.objects.add(op.object)
            case _:
                pass
        return change

    def _object(self, object_id: bytes) -> Object:
        return self.objects.setdefault(object_id, Object())

    def _entry(self, entry_id: bytes) -> Entry:
        """One that nobody has placed yet is known by what was removed of it: the removal came first."""
        found = self.entries.get(entry_id)
        if found is None:
            found = self.entries[entry_id] = Entry(UNKNOWN, trees.Kind.FILE, b"")
            self._object(UNKNOWN).entries.add(entry_id)
        return found

    def _place(self, dot: Dot, stamp: clocks.Stamp, op: shared_ops.Place, change: Change) -> None:
        entry = self._entry(op.entry)
        facts = (op.object, op.kind, op.target)
        if entry.object == UNKNOWN or facts < (entry.object, entry.kind, entry.target):
            # No honest site says two things of one entry; of a dishonest one all keep the same.
            self._object(entry.object).entries.discard(op.entry)
            entry.object, entry.kind, entry.target = facts
            self._object(op.object).entries.add(op.entry)
        self._touch(op.entry, change)
        entry.kept[dot.site] = max(dot.number, entry.kept.get(dot.site, 0))
        claim = Claim(stamp, dot.site, dot.number, op.entry, op.parent, op.name)
        at = bisect.bisect_left(self.log, claim)
        if at < len(self.log) and self.log[at] == claim:
            return
        for later in reversed(self.log[at:]):
            self._touch(later.entry, change)
        self.log.insert(at, claim)
        self._redo(at, change)
        self._touch(op.entry, change)

    def _redo(self, start: int, change: Change) -> None:
        """Do the placements from ``start`` on again, from what stood before them."""
        if start == len(self.log) - 1:
            self._do(self.log[start])
            return
        # All of the log, and not only what comes after: late placements are rare, and the log is short.
        for entry_id in {claim.entry for claim in self.log}:
            self._stand(entry_id, self.entries[entry_id].base)
        for claim in self.log:
            self._do(claim)
        for claim in self.log[start:]:
            self._touch(claim.entry, change)

    def _do(self, claim: Claim) -> None:
        if self.entries[claim.entry].kind is trees.Kind.DIR and self._is_below(claim.parent, claim.entry):
            return
        self._stand(claim.entry, claim)

    def _stand(self, entry_id: bytes, claim: Claim | None) -> None:
        entry = self.entries[entry_id]
        if entry.at is not None:
            self._below[entry.at.parent].discard(entry_id)
        entry.at = claim
        if claim is not None:
            self._below.setdefault(claim.parent, set()).add(entry_id)

    def _is_below(self, directory: bytes, ancestor: bytes) -> bool:
        at: bytes | None = directory
        while at is not None and at != ROOT:
            if at == ancestor:
                return True
            found = self.entries.get(at)
            at = None if found is None or found.at is None else found.at.parent
        return False

    def _remove(self, dot: Dot, op: shared_ops.Remove, change: Change) -> None:
        entry = self._entry(op.entry)
        entry.removed = shared_ops.merged(entry.removed, op.seen)
        entry.removed_by[dot.site] = max(dot.number, entry.removed_by.get(dot.site, 0))
        if self.is_alive(op.entry):
            change.revived.add(op.entry)
        self._touch(op.entry, change)

    def _touch(self, entry_id: bytes, change: Change) -> None:
        """Everything that shows differently when this entry does: its directory, and those above that only
        it may hold.
        """
        change.entries.add(entry_id)
        at = self.entries[entry_id].at
        while at is not None:
            change.directories.add(at.parent)
            above = self.entries.get(at.parent)
            if at.parent == ROOT or above is None or self.is_alive(at.parent):
                return
            at = above.at

    # -- asking ----------------------------------------------------------------------------------------------

    def is_alive(self, entry_id: bytes) -> bool:
        entry = self.entries[entry_id]
        if not shared_ops.covers(entry.removed, entry.kept):
            return True
        found = self.objects[entry.object]
        if not entry.removed_by or shared_ops.covers(entry.removed, found.edited):
            return False
        # An edit that the removal had not seen keeps one name of the file, unless another is there anyway.
        return all(
            shared_ops.covers(self.entries[other].removed, self.entries[other].kept)
            for other in found.entries
            if other != entry_id
        )

    def _alive_entries(self, object_id: bytes) -> set[bytes]:
        found = self.objects.get(object_id)
        return set() if found is None else {entry for entry in found.entries if self.is_alive(entry)}

    def is_shown(self, entry_id: bytes) -> bool:
        if self.is_alive(entry_id):
            return True
        if self.entries[entry_id].kind is not trees.Kind.DIR:
            return False
        return any(self.is_shown(below) for below in self._below.get(entry_id, ()))

    def is_placed(self, entry_id: bytes) -> bool:
        """Whether a way leads from the root to it."""
        at = self.entries[entry_id].at
        while at is not None and at.parent != ROOT:
            above = self.entries.get(at.parent)
            at = None if above is None else above.at
        return at is not None

    def children(self, directory: bytes) -> dict[bytes, bytes]:
        """Name → entry of a directory, as shown; the same at every site that has taken the same records."""
        shown: dict[bytes, bytes] = {}
        beaten: list[bytes] = []
        claims = [
            (claim, entry_id)
            for entry_id in self._below.get(directory, ())
            if (claim := self.entries[entry_id].at) is not None and self.is_shown(entry_id)
        ]
        for claim, entry_id in sorted(claims):
            if claim.name in shown:
                beaten.append(entry_id)
            else:
                shown[claim.name] = entry_id
        for entry_id in beaten:
            at = self.entries[entry_id].at
            assert at is not None, "it has a claim"
            shown[next(name for name in _other_names(at) if name not in shown)] = entry_id
        return shown

    def paths(self) -> Iterator[tuple[bytes, bytes]]:
        """Every (path, entry) as shown, parents first."""
        waiting: list[tuple[bytes, bytes]] = [(b"", ROOT)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, entry_id in sorted(self.children(directory).items()):
                yield prefix + name, entry_id
                if self.entries[entry_id].kind is trees.Kind.DIR:
                    waiting.append((prefix + name + b"/", entry_id))

    # -- bounds ----------------------------------------------------------------------------------------------

    def fold(self, before: clocks.Stamp) -> list[Claim]:
        """Let go of placements older than ``before``: every known site has said something later, so none can come
        that would be done before them. What was let go.
        """
        count = bisect.bisect_left(self.log, before, key=lambda claim: claim.stamp)
        folded, rest = self.log[:count], self.log[count:]
        if not folded:
            return []
        for entry_id in {claim.entry for claim in self.log}:
            self._stand(entry_id, self.entries[entry_id].base)
        for claim in folded:
            self._do(claim)
        for entry_id in {claim.entry for claim in folded}:
            self.entries[entry_id].base = self.entries[entry_id].at
        self.log = rest
        for claim in rest:
            self._do(claim)
        return folded

    def forget(self, seen_by_all: Vector, standing: Container[bytes] = ()) -> set[bytes]:
        """Let go of removed entries whose removal every known site has seen, but for those in ``standing``; which ones."""
        logged = {claim.entry for claim in self.log}
        gone: set[bytes] = set()
        waiting = [entry_id for entry_id, entry in self.entries.items() if entry.removed_by]
        while waiting:
            again: list[bytes] = []
            for entry_id in waiting:
                if (
                    entry_id not in self.entries
                    or entry_id in logged
                    or entry_id in standing
                    or not self._may_go(entry_id, seen_by_all)
                ):
                    continue
                gone.add(entry_id)
                above = self._drop(entry_id)
                if above is not None:
                    again.append(above)
            waiting = again
        return gone

    def _may_go(self, entry_id: bytes, seen_by_all: Vector) -> bool:
        entry = self.entries[entry_id]
        found = self.objects[entry.object]
        vectors = (entry.removed_by, entry.kept, found.edited)
        return (
            bool(entry.removed_by and entry.at)
            and not self.is_shown(entry_id)
            and not self._below.get(entry_id)
            and all(shared_ops.covers(seen_by_all, vector) for vector in vectors)
        )

    def _drop(self, entry_id: bytes) -> bytes | None:
        entry = self.entries.pop(entry_id)
        assert entry.object != UNKNOWN, "it was placed"
        self._below.pop(entry_id, None)
        found = self.objects[entry.object]
        found.entries.discard(entry_id)
        if not found.entries:
            del self.objects[entry.object]
        if entry.at is None:
            return None
        self._below[entry.at.parent].discard(entry_id)
        return entry.at.parent

    @classmethod
    def of(
        cls,
        entries: Iterable[tuple[bytes, Entry]],
        objects: Iterable[tuple[bytes, Object]],
        log: Iterable[Claim],
    ) -> SharedTree:
        """From what was kept: entries with their bases, objects, and the placements since."""
        tree = cls()
        tree.objects = dict(objects)
        for entry_id, entry in entries:
            tree.entries[entry_id] = entry
            tree._object(entry.object).entries.add(entry_id)
            base, entry.at = entry.base, None
            tree._stand(entry_id, base)
        tree.log = sorted(log)
        for claim in tree.log:
            tree._do(claim)
        return tree


def _other_names(claim: Claim) -> Iterator[bytes]:
    """Names for an entry that did not get its own: ``notes.conflict-west-3f2a.txt``."""
    stem, dot, ending = claim.name.rpartition(b".")
    if not stem or len(ending) > 16:
        stem, dot, ending = claim.name, b"", b""
    for digits in range(4, 2 * shared_ops.ID_BYTES + 1):
        mark = b".conflict-" + claim.site.encode() + b"-" + claim.entry.hex()[:digits].encode()
        room = limits.NAME_MAX_BYTES - len(mark) - len(dot) - len(ending)
        yield stem[:room] + mark + dot + ending
