"""Which changes of one file were in flight at once, so that their order cannot be told from the order of
their returns.

The kernel side flags a record when another change of the same file ended while it ran. Which one is found
here, in a short memory of the last records: if the two touched bytes in common, those bytes are re-read; if
they did not, both are exact in either order.
"""

from __future__ import annotations

from collections import deque

from diffkeeper_capture import write_lanes
from diffkeeper_capture.records import Kind, Record

# Records remembered, over all files of the volume. An overlap with one that was forgotten is re-read whole.
REMEMBERED = 512
assert REMEMBERED == write_lanes.HEADS, "a lane remembers as many"

# Records of several processors stand in the ring by the order of their room, with times taken just after.
DISORDER_NS = 1_000_000

Range = tuple[int, int]
# Everything: what a truncation or an unknown change may have touched.
WHOLE: Range = (0, (1 << 63) - 1)


class Overlaps:
    __slots__ = ("_lane", "_recent")

    def __init__(self) -> None:
        self._recent: deque[Record] = deque(maxlen=REMEMBERED)
        # Remembers the writes that went through it.
        self._lane: write_lanes.Lane | None = None

    def use_lane(self, lane: write_lanes.Lane) -> None:
        self._lane = lane

    def note(self, record: Record) -> None:
        """Remember a change of content."""
        self._catch_up()
        self._recent.append(record)

    def _catch_up(self) -> None:
        if self._lane is not None and self._lane.has_heads:
            self._recent.extend(self._lane.take_heads())

    def forget_before(self, end_ns: int) -> None:
        """There were records that ended up to then, and nothing is known of them."""
        blank = Record(*[0] * len(Record._fields))._replace(end_ns=end_ns)
        self._recent.extend([blank] * REMEMBERED)

    def confused_with(self, record: Record) -> Range | None:
        """The range to re-read because of a flagged record (not yet noted); None when its order cannot
        matter.
        """
        self._catch_up()
        low, high = _range_of(record)
        found: Range | None = None
        for other in reversed(self._recent):
            if other.end_ns < record.start_ns - DISORDER_NS:
                return found
            if other.inode != record.inode or other.end_ns < record.start_ns or _is_same_call(other, record):
                continue
            start, end = _range_of(other)
            if start < high and low < end:
                touched = (max(start, low), min(end, high))
                found = touched if found is None else (min(found[0], touched[0]), max(found[1], touched[1]))
        if len(self._recent) < REMEMBERED and record.start_ns:
            return found
        return low, high  # it began before the memory does


def _is_same_call(other: Record, record: Record) -> bool:
    """Parts of one large write do not overlap each other."""
    return other.tid == record.tid and other.start_ns == record.start_ns


def _range_of(record: Record) -> Range:
    if record.kind in (Kind.WRITE, Kind.REREAD):
        return record.offset, record.offset + record.length
    if record.kind == Kind.ALLOCATED:
        return record.offset, WHOLE[1]
    if record.kind == Kind.SIZE:
        return record.aux, WHOLE[1]
    return WHOLE
