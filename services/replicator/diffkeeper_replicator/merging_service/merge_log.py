"""The merge log of a site in the event log: records as frames of the origin (volume, site), and back.

Each record is a run of WRITE deltas under its number as file id, closed by a TRUNCATE that says its size: so a
frame holds many small records, and a large record many frames. The chain of hashes is that of every origin
stream, which the repair service seals like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffkeeper.domain import deltas, errors, frames, limits, positions, shared_ops, volumes

EPOCH = 1
_PIECE_BYTES = limits.DELTA_MAX_DATA_BYTES


@dataclass(frozen=True, slots=True)
class End:
    """Where a merge log ends: the frame to continue, the stream's number of it, the last whole record in it."""

    tip: frames.Tip = frames.ORIGIN_TIP
    sequence: int = 0
    number: int = 0
    stamp: int = 0


def cut(records: Sequence[tuple[int, bytes]]) -> Iterator[tuple[deltas.Columns, int]]:
    """Bodies of frames, in order, each with the number of the last record that is whole with it (0: none)."""
    columns, whole = deltas.Columns(), 0
    for number, packed in records:
        for offset in range(0, len(packed), _PIECE_BYTES):
            piece = packed[offset : offset + _PIECE_BYTES]
            full = columns.payload_bytes + len(piece) > limits.FRAME_TARGET_BYTES
            if len(columns) and (full or len(columns) + 2 > limits.FRAME_MAX_DELTAS):
                yield columns, whole
                columns, whole = deltas.Columns(), 0
            columns.add_write(number, offset, piece, 0)
        columns.add(deltas.Delta(deltas.Op.TRUNCATE, number, len(packed)))
        whole = number
    if len(columns):
        yield columns, whole


def seal(
    origin: volumes.Origin, end: End, columns: deltas.Columns, stamp: int, compressor: frames.Compressor
) -> frames.Frame:
    tip = end.tip
    return frames.seal(
        frames.pack(columns, compressor),
        volume=origin.volume,
        origin=origin.site,
        position=positions.Position(EPOCH, end.sequence + 1),
        parent=tip.position,
        parent_hash=tip.hash,
        first=max(end.stamp, stamp),
        last=max(end.stamp, stamp),
    )


def tip_of(frame: frames.Frame) -> frames.Tip:
    return frames.Tip(frame.position, frame.hash)


def last_whole(frame: frames.Frame) -> int:
    """The number of the last record that ends in a frame; 0: none does."""
    columns = frame.columns()
    ended = [
        number for op, number in zip(columns.ops, columns.file_ids, strict=True) if op == deltas.Op.TRUNCATE
    ]
    return max(ended, default=0)


def check(origin: volumes.Origin, tip: frames.Tip | None, frame: frames.Frame) -> None:
    """Raises Corrupt unless a frame is of this log and continues it."""
    header = frame.header
    if (header.volume, header.origin) != (origin.volume, origin.site):
        raise _bad(origin, f"a frame in it says it is of {header.origin}, volume {header.volume}")
    if tip is not None and frames.follows(tip, frame) is not frames.Follows.NEXT:
        raise _bad(origin, f"frame {header.position} does not continue {tip.position}")


class Assembler:
    """Records from the frames of one log, in order. ``is_between``: no record is half here."""

    def __init__(self, origin: volumes.Origin) -> None:
        self._origin = origin
        self._number = 0
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def is_between(self) -> bool:
        return not self._pieces

    def take(self, frame: frames.Frame) -> list[shared_ops.Record]:
        records: list[shared_ops.Record] = []
        for delta in frame.columns():
            if delta.op is deltas.Op.WRITE:
                self._piece(delta)
            elif delta.op is deltas.Op.TRUNCATE:
                records.append(self._end(delta))
            else:
                raise _bad(self._origin, f"it holds an operation {delta.op.name} that is no record")
        return records

    def _piece(self, delta: deltas.Delta) -> None:
        if delta.offset == 0:  # also when its writer began it again after a crash
            self._number, self._pieces, self._size = delta.file_id, [], 0
        if (delta.file_id, delta.offset) != (self._number, self._size):
            raise _bad(self._origin, f"a piece of record {delta.file_id} stands in the wrong place")
        self._size += delta.length
        if self._size > shared_ops.RECORD_MAX_BYTES:
            raise _bad(self._origin, f"record {delta.file_id} is larger than any may be")
        self._pieces.append(delta.data)

    def _end(self, delta: deltas.Delta) -> shared_ops.Record:
        if (delta.file_id, delta.offset) != (self._number, self._size) or not self._pieces:
            raise _bad(self._origin, f"record {delta.file_id} ends where it does not")
        record = shared_ops.decode(b"".join(self._pieces), self._origin.site)
        self._pieces, self._size = [], 0
        if record.dot.number != delta.file_id:
            raise _bad(self._origin, f"record {delta.file_id} says it is {record.dot.number}")
        return record


def _bad(origin: volumes.Origin, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"the merge log of {origin.volume} from {origin.site} is not what it must be: {why}; nothing from there on "
        "was taken",
        reason="merge-log-damaged",
        hint=f"look at the replicator and the brokers of {origin.site}",
        site=origin.site,
    )
