"""Sites that edit one file, cut off from each other, with updates late, twice, in any order, and crashes.

A history is made from a seed. It keeps what the caller of a document promises: stamps rise at a site, and a site
that comes back with an older state merges its own updates before it edits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.support.merge_kinds import Edited, Kind

from diffkeeper.domain import clocks
from diffkeeper_replicator.merging.merger import Document, Merger

NAMES = ("east", "west", "north", "south", "centre")
_HOUR_US = 3_600_000_000


@dataclass
class Site:
    name: str
    document: Document
    skew_us: int
    saved: bytes
    stamp: clocks.Stamp = 0
    sent: list[bytes] = field(default_factory=list)
    # Everything it took in since it was saved, its own included.
    journal: list[bytes] = field(default_factory=list)
    # Updates of others that are under way.
    coming: list[bytes] = field(default_factory=list)
    group: int = 0


class History:
    def __init__(self, kind: Kind, merger: Merger, seed: int, sites: int) -> None:
        self.kind = kind
        self._merger = merger
        self._rng = random.Random(seed)
        self._now_us = 1_700_000_000_000_000
        self._number = 0
        self.edits: list[Edited] = []
        self.writes: list[tuple[clocks.Stamp, str, bytes]] = []
        self.sites = [
            Site(
                name,
                merger.new(name),
                self._rng.choice([0, 0, _HOUR_US, -_HOUR_US]),
                merger.new(name).state(),
            )
            for name in NAMES[:sites]
        ]
        if kind.first:
            self._write(self.sites[0], Edited(kind.first))
            self.deliver_all()
        for site in self.sites:
            site.saved = site.document.state()
            site.journal.clear()

    def run(self, steps: int) -> None:
        acts = [self.edit, self.edit, self.edit, self.deliver, self.deliver, self.deliver]
        acts += [self.save, self.crash, self.cut, self.merge_state]
        for _ in range(steps):
            self._rng.choice(acts)()

    def edit(self) -> None:
        site = self._rng.choice(self.sites)
        self._number += 1
        self._write(site, self.kind.edit(self._rng, site.document.content(), self._number))

    def _write(self, site: Site, edited: Edited) -> None:
        self._now_us += self._rng.randint(0, 2000)
        site.stamp = clocks.tick(site.stamp, self._now_us + site.skew_us)
        update = site.document.edit(edited.content, site.stamp, site.name)
        if not update:
            return
        self.edits.append(edited)
        self.writes.append((site.stamp, site.name, edited.content))
        site.sent.append(update)
        site.journal.append(update)
        for other in self.sites:
            if other is not site:
                other.coming.append(update)

    def deliver(self) -> None:
        site = self._rng.choice(self.sites)
        origins = {update for one in self.sites if one.group == site.group for update in one.sent}
        near = [update for update in site.coming if update in origins]
        if not near:
            return
        update = self._rng.choice(near)
        if self._rng.random() < 0.8:
            site.coming.remove(update)
        self._merge(site, update)

    def _merge(self, site: Site, update: bytes) -> None:
        site.document.merge(update)
        site.journal.append(update)
        # A hybrid logical clock follows what it hears.
        site.stamp = max(site.stamp, max((stamp for stamp, _, _ in self.writes), default=0))

    def save(self) -> None:
        site = self._rng.choice(self.sites)
        site.saved = site.document.state()
        site.journal.clear()

    def crash(self) -> None:
        site = self._rng.choice(self.sites)
        site.document = self._merger.load(site.saved, site.name)
        # What its own last update may rest on was kept; what it only heard after that may be lost.
        own = [number for number, update in enumerate(site.journal) if update in site.sent]
        del site.journal[self._rng.randint(own[-1] + 1 if own else 0, len(site.journal)) :]
        for update in site.journal:
            site.document.merge(update)
        site.coming = [update for one in self.sites if one is not site for update in one.sent]

    def cut(self) -> None:
        for site in self.sites:
            site.group = self._rng.choice([0, 0, 1])

    def merge_state(self) -> None:
        one, other = self._rng.sample(self.sites, 2)
        if one.group == other.group:
            self._merge(one, other.document.state())

    def deliver_all(self) -> None:
        for site in self.sites:
            site.group = 0
            self._rng.shuffle(site.coming)
            for update in site.coming:
                self._merge(site, update)
            site.coming.clear()

    def compact(self) -> None:
        for site in self.sites:
            site.document.compact()

    def contents(self) -> set[bytes]:
        return {site.document.content() for site in self.sites}
