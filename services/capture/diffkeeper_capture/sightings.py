"""Differences between shadow and disk that records still in the ring may explain.

The disk is ahead of the log by what has not been drained. A name that differs is therefore believed only at a
second look, after everything that had happened at the first one has been drained, and only if both sides are
what they were: then no record will come. A name that differs in another way each time is busy; after some
looks it is acted upon as it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

LOOKS_MAX = 4

Entry = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Sighting:
    inode: int  # on disk, 0 for nothing
    known: int  # in the shadow, 0 for nothing
    at_ns: int
    looks: int


class Sightings:
    """``is_impatient``: nothing will explain a difference, because no records come or nobody watched."""

    def __init__(self, *, is_impatient: bool) -> None:
        self.is_impatient = is_impatient
        self.waiting: dict[Entry, Sighting] = {}
        self._again: dict[Entry, Sighting] = {}

    def due(self, drained_ns: int) -> list[Entry]:
        """Entries to be looked at again, now that everything before ``drained_ns`` has been drained."""
        entries = [entry for entry, sighting in self.waiting.items() if sighting.at_ns < drained_ns]
        self._again = {entry: self.waiting.pop(entry) for entry in entries}
        return entries

    def agrees(self, entry: Entry) -> None:
        self.waiting.pop(entry, None)
        self._again.pop(entry, None)

    def may_act(self, entry: Entry, inode: int, known: int) -> bool:
        """Whether a difference is real; if that cannot be known yet, it is remembered."""
        if self.is_impatient:
            return True
        before = self._again.pop(entry, None)
        if before is not None and (
            (before.inode, before.known) == (inode, known) or before.looks >= LOOKS_MAX
        ):
            self.waiting.pop(entry, None)
            return True
        if entry not in self.waiting:
            looks = before.looks + 1 if before is not None else 1
            self.waiting[entry] = Sighting(inode, known, time.monotonic_ns(), looks)
        return False
