"""Many steps of the log made one, for moments nobody goes back to any more: what lies between two kept points
loses the bytes that were overwritten before the second.

The result leads from the first point to the second exactly: names and lengths are kept in order, and a write
is left out only where later writes or a truncation decide every byte of it, or its file is gone at the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from diffkeeper.domain import deltas, limits
from diffkeeper.domain.deltas import Delta, Op
from diffkeeper_replicator.extents import Extents

# A body is cut here, well below what a reader takes.
_BODY_BYTES = limits.FRAME_MAX_BODY_BYTES // 2
_BODY_DELTAS = limits.FRAME_MAX_DELTAS // 2


def fold(run: Iterable[deltas.Columns], alive: Collection[int]) -> list[deltas.Columns]:
    """``alive``: the files that have a name at the end."""
    kept: list[Delta] = []
    covered: dict[int, Extents] = {}
    for delta in reversed([delta for columns in run for delta in columns]):
        if delta.op is Op.BARRIER or not _matters(delta, alive, covered):
            continue
        kept.append(delta)
    kept.reverse()
    return list(_bodies(kept))


def _matters(delta: Delta, alive: Collection[int], covered: dict[int, Extents]) -> bool:
    if delta.op in deltas.NAMING or delta.op is Op.GAP:
        return True
    if delta.file_id not in alive:
        return False
    if delta.op is Op.WRITE:
        later = covered.setdefault(delta.file_id, Extents())
        end = delta.offset + delta.length
        if delta.length and _is_covered(later, delta.offset, end):
            return False
        later.write(delta.offset, delta.length, 0)
    elif delta.op is Op.TRUNCATE:
        # Whatever stood beyond is gone, and the length is decided here.
        later = covered.setdefault(delta.file_id, Extents())
        later.write(delta.offset, limits.FILE_MAX_OFFSET - delta.offset, 0)
    return True


def _is_covered(later: Extents, start: int, end: int) -> bool:
    at = start
    for begin, stop, address in later.pieces(start, end):
        if address < 0 or begin != at:
            return False
        at = stop
    return at >= end


def _bodies(run: Iterable[Delta]) -> Iterator[deltas.Columns]:
    columns = deltas.Columns()
    for delta in run:
        if len(columns) and (
            columns.payload_bytes + len(delta.data) > _BODY_BYTES or len(columns) >= _BODY_DELTAS
        ):
            yield columns
            columns = deltas.Columns()
        columns.add(_without_time(delta))
    if len(columns):
        yield columns


def _without_time(delta: Delta) -> Delta:
    return Delta(delta.op, delta.file_id, delta.offset, delta.length, delta.data, delta.args)
