"""The tree of a shared volume: stated cases of concurrent changes, and random ones at three to five sites whose logs
come in any interleaving, where all must end alike and nothing may be lost.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkeeper.domain import errors, shared_ops, shared_trees, trees
from diffkeeper.domain.shared_ops import ROOT, Attributes, Dot, Edit, Place, Record, Remove


class Site:
    """What a replicator does, without disk and wire: says records, takes in those of others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tree = shared_trees.SharedTree()
        self.log: list[Record] = []
        self.vector: dict[str, int] = {}
        self.clock = 0
        self.heard: dict[str, int] = {}

    def say(self, op: shared_ops.Op) -> Record:
        self.clock += 1
        record = Record(Dot(self.name, len(self.log) + 1), self.clock, op)
        self.log.append(record)
        self.take(record)
        return record

    def take(self, record: Record) -> None:
        assert record.dot.number == self.vector.get(record.dot.site, 0) + 1
        self.vector[record.dot.site] = record.dot.number
        self.clock = max(self.clock, record.stamp)
        self.heard[record.dot.site] = record.stamp
        self.tree.apply(shared_ops.decode(shared_ops.encode(record), record.dot.site))

    def hear(self, other: Site, count: int = 1 << 30) -> None:
        known = self.vector.get(other.name, 0)
        for record in other.log[known : known + count]:
            self.take(record)

    def make(self, name: bytes, parent: bytes = ROOT, kind: trees.Kind = trees.Kind.FILE) -> bytes:
        entry = shared_ops.derived_id(self.name.encode(), str(len(self.log)).encode())
        self.say(Place(entry, entry, kind, b"", parent, name))
        return entry

    def move(self, entry: bytes, parent: bytes, name: bytes) -> None:
        at = self.tree.entries[entry]
        self.say(Place(entry, at.object, at.kind, at.target, parent, name))

    def remove(self, entry: bytes) -> None:
        self.say(Remove(entry, dict(self.vector)))

    def edit(self, entry: bytes) -> None:
        self.say(Edit(self.tree.entries[entry].object, "text", b"x"))

    def shown(self) -> dict[bytes, bytes]:
        return dict(self.tree.paths())


def exchange(*sites: Site) -> None:
    for one in sites:
        for other in sites:
            if one is not other:
                one.hear(other)
    assert all(site.shown() == sites[0].shown() for site in sites)


def two(shared: bytes = b"notes.txt") -> tuple[Site, Site, bytes]:
    east, west = Site("east"), Site("west")
    entry = east.make(shared)
    exchange(east, west)
    return east, west, entry


def test_creates_of_one_name_at_two_sites_keep_both_and_the_older_has_the_name() -> None:
    east, west = Site("east"), Site("west")
    first = east.make(b"a.txt")
    west.clock += 10
    second = west.make(b"a.txt")
    exchange(east, west)
    other = b"a.conflict-west-" + second.hex()[:4].encode() + b".txt"
    assert east.shown() == {b"a.txt": first, other: second}


def test_a_rename_and_an_edit_at_another_site_both_take_effect() -> None:
    east, west, entry = two()
    east.move(entry, ROOT, b"renamed.txt")
    west.edit(entry)
    exchange(east, west)
    assert west.shown() == {b"renamed.txt": entry}
    assert east.tree.objects[entry].edited == {"west": 1}


def test_an_edit_that_a_removal_had_not_seen_keeps_the_file_and_says_so() -> None:
    east, west, entry = two()
    east.remove(entry)
    record = west.say(Edit(entry, "text", b"x"))
    assert east.shown() == {}
    east.vector["west"] = 1
    assert east.tree.apply(record).revived == {entry}
    west.hear(east)
    assert east.shown() == west.shown() == {b"notes.txt": entry}


def test_a_removal_that_had_seen_the_edit_counts() -> None:
    east, west, entry = two()
    west.edit(entry)
    exchange(east, west)
    east.remove(entry)
    exchange(east, west)
    assert west.shown() == {}


def test_two_directories_moved_into_each_other_make_no_cycle_and_lose_nothing() -> None:
    east, west, one = two(b"one")
    east, west = Site("east"), Site("west")
    one, other = east.make(b"one", kind=trees.Kind.DIR), east.make(b"two", kind=trees.Kind.DIR)
    inside = east.make(b"inside", one)
    exchange(east, west)
    east.move(one, other, b"one")
    west.move(other, one, b"two")
    exchange(east, west)
    assert set(east.shown().values()) == {one, other, inside}


def test_a_file_made_in_a_directory_removed_elsewhere_keeps_the_directory() -> None:
    east, west, _ = two()
    directory = east.make(b"box", kind=trees.Kind.DIR)
    exchange(east, west)
    east.remove(directory)
    made = west.make(b"new", directory)
    exchange(east, west)
    assert east.shown()[b"box/new"] == made
    west.remove(made)
    exchange(east, west)
    assert b"box" not in east.shown()


def test_removing_one_of_two_links_removes_that_name_only() -> None:
    east, west, entry = two()
    link = shared_ops.derived_id(b"link")
    east.say(Place(link, entry, trees.Kind.FILE, b"", ROOT, b"link"))
    exchange(east, west)
    east.remove(link)
    west.edit(entry)
    exchange(east, west)
    assert east.shown() == {b"notes.txt": entry}


def test_a_removal_that_comes_before_the_entry_it_removes_counts() -> None:
    east, west, entry = two()
    west.remove(entry)
    late = Site("late")
    late.hear(west)
    late.hear(east)
    assert late.shown() == {}


def test_the_last_attributes_count_whichever_come_first() -> None:
    east, west, entry = two()
    east.say(Attributes(entry, 0o600, 1))
    west.clock += 5
    west.say(Attributes(entry, 0o644, 2))
    exchange(east, west)
    assert east.tree.objects[entry].mode == west.tree.objects[entry].mode == 0o644


def test_conflict_names_stay_within_the_limit_and_keep_their_ending() -> None:
    east, west = Site("east"), Site("west")
    east.make(b"n" * 251 + b".txt")
    west.make(b"n" * 251 + b".txt")
    exchange(east, west)
    assert all(len(name) <= 255 and name.endswith(b".txt") for name in east.shown())
    assert len(east.shown()) == 2


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256, "text"], ids=lambda name: repr(name)[:12]
)
def test_names_that_lead_elsewhere_are_refused(name: bytes) -> None:
    place = Place(bytes(16), bytes(16), trees.Kind.FILE, b"", ROOT, b"name")
    wire = shared_ops.encode(Record(Dot("east", 1), 1, replace(place, name=name)))
    with pytest.raises(errors.Corrupt, match="merge log of east"):
        shared_ops.decode(wire, "east")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_refused(wire: bytes) -> None:
    try:
        record = shared_ops.decode(wire, "east")
    except errors.Corrupt:
        return
    assert shared_ops.decode(shared_ops.encode(record), "east") == record


# -- random histories ----------------------------------------------------------------------------------------


def act(site: Site, rng: random.Random) -> None:
    """One thing a program might do with what it sees."""
    seen = [entry for _, entry in site.tree.paths()]
    directories = [ROOT] + [entry for entry in seen if site.tree.entries[entry].kind is trees.Kind.DIR]
    name = rng.choice([b"a", b"b", b"c"])
    parent = rng.choice(directories)
    what = rng.random()
    site.clock += rng.choice([0, 0, 1, 50])
    if what < 0.35 or not seen:
        if name not in site.tree.children(parent):
            site.make(name, parent, rng.choice([trees.Kind.DIR, trees.Kind.FILE]))
        return
    entry = rng.choice(seen)
    if what < 0.65:
        if name not in site.tree.children(parent) and not site.tree._is_below(parent, entry):
            site.move(entry, parent, name)
    elif what < 0.85:
        if not site.tree.children(entry):
            site.remove(entry)
    elif site.tree.entries[entry].kind is trees.Kind.FILE:
        site.edit(entry)


def restart(site: Site) -> None:
    """Everything from what would be on its disk."""
    old = site.tree
    site.tree = shared_trees.SharedTree.of(old.entries.items(), old.objects.items(), old.log)


def fold(site: Site, sites: list[Site]) -> None:
    """What a site may let go of by what it has heard."""
    names = [other.name for other in sites]
    site.tree.fold(min(site.heard.get(name, 0) for name in names))


def unseen_keeps(sites: list[Site]) -> set[bytes]:
    """Entries that must be there at the end, by the records alone: no removal had seen all that was done to them."""
    kept: dict[bytes, list[Dot]] = {}
    removals: dict[bytes, list[Remove]] = {}
    objects: dict[bytes, bytes] = {}
    for record in (record for site in sites for record in site.log):
        if isinstance(record.op, Place):
            kept.setdefault(record.op.entry, []).append(record.dot)
            objects[record.op.entry] = record.op.object
        elif isinstance(record.op, Edit):
            kept.setdefault(record.op.object, []).append(record.dot)
        elif isinstance(record.op, Remove):
            removals.setdefault(record.op.entry, []).append(record.op)
    return {
        entry
        for entry, dots in kept.items()
        if any(
            all(removal.seen.get(dot.site, 0) < dot.number for removal in removals.get(entry, []))
            for dot in dots
        )
    }


@settings(max_examples=300, deadline=None)
@given(st.integers(3, 5), st.integers(0, 2**32))
def test_sites_that_hear_each_other_in_any_order_converge_and_lose_nothing(count: int, seed: int) -> None:
    rng = random.Random(seed)
    sites = [Site(name) for name in ("east", "west", "north", "south", "centre")[:count]]
    for _ in range(rng.randrange(5, 60)):
        site = rng.choice(sites)
        what = rng.random()
        if what < 0.6:
            act(site, rng)
        elif what < 0.9:
            other = rng.choice(sites)
            if other is not site:
                site.hear(other, rng.randrange(1, 5))
        elif what < 0.95:
            restart(site)
        else:
            fold(site, sites)
    exchange(*sites)
    assert all(site.tree.is_placed(entry) for site in sites for entry in site.shown().values())
    assert unseen_keeps(sites) <= set(sites[0].shown().values())
    modes = [
        {key: (found.edited, found.entries) for key, found in site.tree.objects.items()} for site in sites
    ]
    assert all(found == modes[0] for found in modes)
    seen_by_all = {name: min(site.vector.get(name, 0) for site in sites) for name in sites[0].vector}
    shown = sites[0].shown()
    for site in sites:
        site.tree.fold(1 << 40)
        site.tree.forget(seen_by_all)
        assert site.shown() == shown
        assert site.tree.log == []
        alive = {entry for entry in site.tree.entries if site.tree.is_shown(entry)}
        assert set(site.tree.entries) == alive
