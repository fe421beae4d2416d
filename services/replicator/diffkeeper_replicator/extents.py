"""Which bytes a file holds, without holding them: runs of the file, each with the address of its content.

An address is a number in one space that belongs to a state (``contents.Contents``): what lies there never
changes, so two runs with the same address are the same bytes. What no run covers reads as zeros.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

# In place of an address: nothing was ever written here, or it was punched out.
HOLE = -1


class Extents:
    __slots__ = ("addresses", "ends", "size", "starts")

    def __init__(self) -> None:
        self.size = 0
        # Invariant: runs are sorted, not empty, apart from each other, and end within ``size``.
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.addresses: list[int] = []

    def copy(self) -> Extents:
        made = Extents()
        made.size = self.size
        made.starts, made.ends, made.addresses = self.starts[:], self.ends[:], self.addresses[:]
        return made

    def write(self, offset: int, length: int, address: int) -> None:
        if length == 0:
            return
        end = offset + length
        ends = self.ends
        if not ends or offset >= ends[-1]:
            # Appending, which most writes of logs are.
            if ends and ends[-1] == offset and self.addresses[-1] + offset - self.starts[-1] == address:
                ends[-1] = end
            else:
                self.starts.append(offset)
                ends.append(end)
                self.addresses.append(address)
        else:
            at = self._clear(offset, end)
            joins = (
                at > 0
                and ends[at - 1] == offset
                and self.addresses[at - 1] + offset - self.starts[at - 1] == address
            )
            if joins:
                ends[at - 1] = end
            else:
                self.starts.insert(at, offset)
                ends.insert(at, end)
                self.addresses.insert(at, address)
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        if size < self.size:
            self._clear(size, self.size)
        self.size = size

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, self.size)
        if offset < end:
            self._clear(offset, end)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(start, end, address or ``HOLE``) of everything from ``start`` to ``end`` within the size."""
        end = min(end, self.size)
        at = bisect_right(self.ends, start)
        while start < end:
            if at == len(self.starts) or self.starts[at] >= end:
                yield start, end, HOLE
                return
            if start < self.starts[at]:
                yield start, self.starts[at], HOLE
                start = self.starts[at]
            stop = min(end, self.ends[at])
            yield start, stop, self.addresses[at] + start - self.starts[at]
            start = stop
            at += 1

    def _clear(self, start: int, end: int) -> int:
        """Take out ``start`` to ``end``; the index at which a run that begins at ``start`` belongs."""
        starts, ends, addresses = self.starts, self.ends, self.addresses
        first = bisect_right(ends, start)
        last = bisect_left(starts, end, first)  # the runs first to last - 1 are touched
        if first == last:
            return first
        left_start, left_address = starts[first], addresses[first]
        right_end, right_address = ends[last - 1], addresses[last - 1] + end - starts[last - 1]
        new_starts, new_ends, new_addresses = [], [], []
        at = first
        if left_start < start:
            new_starts.append(left_start)
            new_ends.append(start)
            new_addresses.append(left_address)
            at += 1
        if right_end > end:
            new_starts.append(end)
            new_ends.append(right_end)
            new_addresses.append(right_address)
        starts[first:last], ends[first:last], addresses[first:last] = new_starts, new_ends, new_addresses
        return at


def changes(old: Extents, new: Extents) -> Iterator[tuple[int, int, int, int]]:
    """(start, end, old address, new address) of what may differ: where both have the same address, or both
    have nothing, they are the same. Covers the size of ``new``; beyond the size of ``old`` there is nothing.
    """
    size = new.size
    older, newer = old.pieces(0, size), new.pieces(0, size)
    beyond = (min(old.size, size), size, HOLE)
    a, b = next(older, beyond), next(newer, None)
    start = 0
    while b is not None:
        end = min(a[1], b[1])
        left = a[2] if a[2] == HOLE else a[2] + start - a[0]
        right = b[2] if b[2] == HOLE else b[2] + start - b[0]
        if left != right:
            yield start, end, left, right
        start = end
        if start >= a[1]:
            a = next(older, beyond)
        if start >= b[1]:
            b = next(newer, None)
