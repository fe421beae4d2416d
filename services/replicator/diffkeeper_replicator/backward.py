"""What files hold at a position, worked out of the journal from that position backward.

Read backward, the first delta met that decides a byte is the last one that did: so each byte is told once, and nothing
is replayed. ``Images`` gives live pieces in whatever order the journal has them; what it has given it never gives again.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from diffkeeper.domain import deltas, errors, frames
from diffkeeper.domain.deltas import Op
from diffkeeper_replicator.contents import blocks
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.states import State

_END = 1 << 63
# Read at once from the journal, whose frames are read forward: memory for this many.
_BLOCK_FRAMES = 16
# Written down, so that an operation that is added later is refused until somebody thought about it.
_UNDERSTOOD = re.compile(rb"[\x01-\x0f]*")
assert (int(min(Op)), int(Op.MKFIFO)) == (1, 15), "the pattern above names them"


class Intervals:
    """A growing set of offsets, as ranges that do not touch."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> list[tuple[int, int]]:
        """Put [start, end) in; the parts that were not in yet, rising."""
        if start >= end:
            return []
        starts, ends = self._starts, self._ends
        first = bisect_left(ends, start)
        last = bisect_right(starts, end)
        if first < last and starts[first] <= start and ends[first] >= end:
            return []
        gaps, at = [], start
        for low, high in zip(starts[first:last], ends[first:last], strict=True):
            if at < low:
                gaps.append((at, low))
            at = max(at, high)
        if at < end:
            gaps.append((at, end))
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        starts[first:last], ends[first:last] = [start], [end]
        return gaps


@dataclass(frozen=True, slots=True)
class Piece:
    """``data`` None: zeros."""

    file_id: int
    offset: int
    length: int
    data: memoryview | None


@dataclass(slots=True)
class Image:
    """One file, as far as it is known. ``size`` is None until a delta decided it."""

    covered: Intervals = field(default_factory=Intervals)
    size: int | None = None
    xattrs: dict[bytes, bytes | None] = field(default_factory=dict)
    mtime_ns: int | None = None
    _end: int = 0
    _written: bool = False

    def write(self, start: int, end: int) -> list[tuple[int, int]]:
        if self.size is None:
            self._end = max(self._end, end)
        self._written = True
        return self.covered.add(start, end)

    def cut(self, size: int) -> list[tuple[int, int]]:
        """A truncation to ``size``; the parts beyond it that are zeros now."""
        if self.size is None:
            self.size = max(size, self._end)
        self._written = True
        gaps = self.covered.add(size, _END)
        return [(low, min(high, self.size)) for low, high in gaps if low < self.size]

    def note_times(self, attrs: dict[str, int]) -> None:
        if self.mtime_ns is None and not self._written:
            self.mtime_ns = attrs.get("mtime_ns")


class Images:
    """The files with these ids, at the position of ``tip``."""

    def __init__(self, ids: set[int]) -> None:
        self.images = {file_id: Image() for file_id in ids}

    def pieces(self, journal: Journal, tip: frames.Tip, base: State | None = None) -> Iterator[Piece]:
        """Every live piece, once; ``base`` is what a journal that was shortened goes on from. Afterwards ``images``
        know their sizes. Raises Corrupt what the journal raises, and ``operation-not-understood`` for a delta that
        cannot be read backward.
        """
        if base is None and journal.first > 1:
            raise errors.Corrupt(
                f"the journal begins with sequence {journal.first}, and what comes before is not known here",
                reason="not-in-journal",
                hint="the directory can be built anew from the log",
            )
        for frame in frames_back(journal, tip.position.sequence):
            yield from self._of_frame(frame.columns())
        yield from self.pieces_of(base)

    def pieces_of(self, base: State | None) -> Iterator[Piece]:
        """What no delta decided: as ``base`` has it, or nothing where there is none."""
        if base is not None:
            for file_id, image in self.images.items():
                yield from _of_state(base, file_id, image)
        for file_id, image in self.images.items():
            yield from _zeros(file_id, image.cut(0))

    def _of_frame(self, columns: deltas.Columns) -> Iterator[Piece]:
        if _UNDERSTOOD.fullmatch(columns.ops) is None:
            raise not_understood(max(columns.ops))
        data, at = memoryview(columns.data), len(columns.data)
        args_at = len(columns.args)
        for index in range(len(columns) - 1, -1, -1):
            op, offset, length = columns.ops[index], columns.offsets[index], columns.lengths[index]
            if op == Op.WRITE:
                at -= length
            elif op in deltas.WITH_ARGS:
                args_at -= 1
            file_id = columns.file_ids[index]
            image = self.images.get(file_id)
            if image is None:
                continue
            match op:
                case Op.WRITE:
                    for low, high in image.write(offset, offset + length):
                        chunk = data[at + low - offset : at + high - offset]
                        yield Piece(file_id, low, high - low, chunk)
                case Op.PUNCH:
                    yield from _zeros(file_id, image.covered.add(offset, offset + length))
                case Op.TRUNCATE:
                    yield from _zeros(file_id, image.cut(offset))
                case Op.CREATE:
                    yield from _zeros(file_id, image.cut(0))
                case Op.XATTR:
                    name, value = columns.args[args_at]
                    image.xattrs.setdefault(name, value)
                case Op.ATTR:
                    image.note_times(columns.args[args_at][0])


def _zeros(file_id: int, gaps: list[tuple[int, int]]) -> Iterator[Piece]:
    for low, high in gaps:
        yield Piece(file_id, low, high - low, None)


def _of_state(base: State, file_id: int, image: Image) -> Iterator[Piece]:
    """What a file held where the journal begins, as if one delta had made it so."""
    mtime_ns = base.times.get(file_id, (None, None))[1]
    if mtime_ns is not None:
        image.note_times({"mtime_ns": mtime_ns})
    for name, value in base.xattrs.get(file_id, {}).items():
        image.xattrs.setdefault(name, value)
    extents = base.files.get(file_id)
    if extents is None:
        return
    yield from _zeros(file_id, image.cut(extents.size))
    for offset, data in blocks(base.contents, extents, 0, extents.size):
        view = memoryview(data)
        for low, high in image.write(offset, offset + len(data)):
            yield Piece(file_id, low, high - low, view[low - offset : high - offset])


def frames_back(journal: Journal, sequence: int) -> Iterator[frames.Frame]:
    """The journal's frames from a sequence down to the first that it has."""
    begin = journal.first
    while sequence >= begin:
        first = max(begin, sequence - _BLOCK_FRAMES + 1)
        yield from reversed(list(islice(journal.frames_from(first), sequence - first + 1)))
        sequence = first - 1


def not_understood(op: int) -> errors.Corrupt:
    return errors.Corrupt(
        f"the log has an operation ({op}) that cannot be read backward; nothing was changed",
        reason="operation-not-understood",
        hint="the directory can be built anew from the log instead",
        operation=op,
    )
