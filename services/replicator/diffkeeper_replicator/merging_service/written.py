"""Where a file was written, as the captured log says: ranges that bound what a look at the file has to compare.

A hint: the file may have been written again since, and what does not fit is found by comparing all of it.
"""

from __future__ import annotations

# (offset, length) in the order of the writes. None: anything may have changed.
Ranges = list[tuple[int, int]] | None

# To the end of the file, however long it becomes.
TO_THE_END = 1 << 62
RANGES_MAX = 1000
# Paths whose ranges are kept until somebody looks at them.
PATHS_MAX = 10_000


def joined(one: Ranges, other: Ranges) -> Ranges:
    """What was written in both; writes that continue each other are one."""
    if one is None or other is None:
        return None
    found = list(one)
    for offset, length in other:
        if found and found[-1][0] + found[-1][1] == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        elif not found or found[-1] != (offset, length):
            found.append((offset, length))
    return found if len(found) <= RANGES_MAX else None


class Written:
    """By path, until it is taken."""

    def __init__(self) -> None:
        self._ranges: dict[bytes, Ranges] = {}

    def add(self, path: bytes, ranges: Ranges) -> None:
        if len(self._ranges) >= PATHS_MAX:
            self._ranges.clear()
        self._ranges[path] = joined(self._ranges[path], ranges) if path in self._ranges else ranges

    def take(self, path: bytes) -> Ranges:
        return self._ranges.pop(path, None)
