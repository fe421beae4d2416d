"""Who wrote which run of a text, and when: for each site the clocks of Yjs up to which a stamp reaches."""

from __future__ import annotations

import bisect
from typing import Any

from diffkeeper.domain import clocks
from diffkeeper_replicator.merging import wire

# Edits of one site that lie this close together are told as one after compaction.
FOLD_US = 60_000_000


class Marks:
    """Invariant: ``ends`` and ``stamps`` of a site have one length, and ``ends`` rises."""

    def __init__(self) -> None:
        self._ends: dict[str, list[int]] = {}
        self._stamps: dict[str, list[clocks.Stamp]] = {}

    def sites(self) -> list[str]:
        return list(self._ends)

    def end(self, site: str) -> int:
        ends = self._ends.get(site)
        return ends[-1] if ends else 0

    def add(self, site: str, end: int, stamp: clocks.Stamp) -> None:
        self._ends.setdefault(site, []).append(end)
        self._stamps.setdefault(site, []).append(stamp)

    def stamp(self, site: str, clock: int) -> clocks.Stamp:
        return self._stamps[site][bisect.bisect_right(self._ends[site], clock)]

    def join(self, other: Marks) -> None:
        """What a site wrote is known up to some clock: the longer knowledge has the shorter one in it."""
        for site in other._ends:
            if other.end(site) > self.end(site):
                self._ends[site] = list(other._ends[site])
                self._stamps[site] = list(other._stamps[site])

    def fold(self) -> None:
        for site, stamps in self._stamps.items():
            ends = self._ends[site]
            kept = [
                number
                for number, stamp in enumerate(stamps)
                if number + 1 == len(stamps)
                or clocks.to_micros(stamps[number + 1]) // FOLD_US != clocks.to_micros(stamp) // FOLD_US
            ]
            self._ends[site] = [ends[number] for number in kept]
            self._stamps[site] = [stamps[number] for number in kept]

    def dump(self) -> list[Any]:
        return [[site, _deltas(self._ends[site]), _deltas(self._stamps[site])] for site in self._ends]


def load(dumped: Any) -> Marks:
    marks = Marks()
    wire.expect(isinstance(dumped, tuple) and len(dumped) <= wire.SITES_MAX, "marks")
    for row in dumped:
        wire.expect(isinstance(row, tuple) and len(row) == 3 and wire.is_site(row[0]), "marks")
        site, ends, stamps = row
        wire.expect(isinstance(ends, tuple) and isinstance(stamps, tuple), "marks")
        wire.expect(len(ends) == len(stamps) > 0 and site not in marks._ends, "marks")
        wire.expect(all(type(end) is int and end > 0 for end in ends), "marks")
        wire.expect(all(type(stamp) is int and stamp > 0 for stamp in stamps), "marks")
        marks._ends[site] = _sums(ends)
        marks._stamps[site] = _sums(stamps)
        wire.expect(wire.is_stamp(marks._stamps[site][-1]), "marks")
    return marks


def _deltas(values: list[int]) -> list[int]:
    return [value - before for before, value in zip([0, *values], values, strict=False)]


def _sums(deltas: tuple[int, ...]) -> list[int]:
    values: list[int] = []
    total = 0
    for delta in deltas:
        total += delta
        values.append(total)
    return values
