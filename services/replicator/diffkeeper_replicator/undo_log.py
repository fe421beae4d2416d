"""The undo records of one replica on disk: a chain of them that ends where the journal's applied part ends.

A record is written before the run that it belongs to changes the directory. The chain has no hole: a record that
cannot be kept ends it, and it begins anew behind. What is old is dropped by whole segment files, so that bytes and
frames stay bounded. One thread.

On disk, a record is a head (struct below), its span (which frames, which graves) and its payload, compressed; the
checksum is of both. Records in another format (another magic) are no records: the chain begins anew behind them.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions
from diffkeeper_replicator import undo_records
from diffkeeper_replicator.undo_records import OldBytes, Record, Span

_MAGIC = b"DKU2"
_HEAD = struct.Struct("<4sII32s")  # magic, bytes of span, bytes of payload, checksum
_SUFFIX = ".undo"
_BEGINNING = "beginning"
_SPAN_MAX_BYTES = 16 * 1024 * 1024
_PARTS_MAX = 1024  # IOV_MAX
# A segment is what retention drops at once.
_SEGMENTS_IN_BOUND = 8


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept. ``size_bytes`` 0: nothing at all. Graves count with what they take on disk."""

    size_bytes: int = 512 * 1024 * 1024
    frames: int = 100_000
    # One more fsync before each run is applied, for a chain that outlives a power cut too. Without it a power cut makes
    # the chain begin anew; a killed process never does.
    durable: bool = False


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int
    # The sequence of the frame before its first record.
    before: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    span: Span
    segment: _Segment
    offset: int  # of the payload
    span_bytes: bytes
    payload_bytes: int
    checksum: bytes


class UndoLog:
    """Made by ``open``. ``tip`` is where it ends, None while it holds nothing and has not begun."""

    def __init__(self, directory: Path, bounds: Bounds) -> None:
        self._directory = directory
        self.bounds = bounds
        self._segments: list[_Segment] = []
        self._kept: list[_Kept] = []
        self._fd = -1
        self._codec = undo_records.Codec()
        self.tip: frames.Tip | None = None
        # How many of the records name a grave.
        self.graves: Counter[int] = Counter()

    @classmethod
    def open(cls, directory: Path, bounds: Bounds) -> UndoLog:
        """What is there and whole; a torn record at the end is cut off. What does not lead to the end is
        dropped.
        """
        log = cls(directory, bounds)
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.glob(f"*{_SUFFIX}")):
            try:
                log._take_segment(path)
            except errors.Corrupt:
                log._drop_all()
                path.unlink()
        log.tip = log._kept[-1].span.after if log._kept else log._begun()
        for kept in log._kept:
            log.graves.update(_ids(kept.span))
        return log

    @property
    def floor(self) -> positions.Position | None:
        """The oldest position that can be gone back to."""
        if self._kept:
            return self._kept[0].span.before.position
        return self.tip.position if self.tip is not None else None

    @property
    def size_bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    @property
    def enabled(self) -> bool:
        return self.bounds.size_bytes > 0

    def begin_at(self, tip: frames.Tip) -> list[int]:
        """Forget everything; the next record leads back to ``tip``. Gives the graves that nobody needs any more."""
        graves = list(self.graves)
        self.graves.clear()
        self._close()
        for segment in self._segments:
            segment.path.unlink()
        self._segments, self._kept, self.tip = [], [], tip
        self._note_beginning(tip)
        return graves

    def old_bytes(self) -> OldBytes:
        """Takes the old bytes of the record that is appended next."""
        return self._codec.old_bytes()

    def append(self, record: Record, old_bytes: OldBytes) -> None:
        """Keep a record. Raises OSError when the disk does not take it; then nothing of it is kept."""
        assert self.tip == record.span.before, "the chain of undo records has no hole"
        span, payload = undo_records.encode_span(record.span), old_bytes.finish(record)
        payload_bytes = sum(map(len, payload))
        digest = undo_records.checksum(span, payload)
        segment = self._writable(record.span)
        at = segment.size
        head = _HEAD.pack(_MAGIC, len(span), payload_bytes, digest)
        try:
            _write_all(self._fd, [head, span, *payload], at)
            if self.bounds.durable:
                os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, at)
            raise
        offset = at + _HEAD.size + len(span)
        segment.size = offset + payload_bytes
        self._kept.append(_Kept(record.span, segment, offset, span, payload_bytes, digest))
        if record.span.graves:
            self.graves.update(_ids(record.span))
        self.tip = record.span.after

    def spans_back(self) -> Iterator[Span]:
        """Newest first."""
        for kept in reversed(self._kept):
            yield kept.span

    def dying(self) -> dict[int, int]:
        """Inode → id of the files that the newest run removes: it may have been broken off before."""
        return {inode: file_id for file_id, inode in self._kept[-1].span.graves} if self._kept else {}

    def records_back(self, target: positions.Position) -> Iterator[Record]:
        """Newest first, up to the one that leads to ``target`` or before it. Raises Corrupt (``undo-damaged``)."""
        for kept in reversed(self._kept):
            if kept.span.after.position <= target:
                return
            yield self._read(kept)

    def cut_to(self, tip: frames.Tip) -> None:
        """Drop the records after ``tip``, which is the ``before`` of one of them."""
        while self._kept and self._kept[-1].span.after.position > tip.position:
            kept = self._kept.pop()
            self._unname(kept.span)
            kept.segment.size = kept.offset - len(kept.span_bytes) - _HEAD.size
        assert not self._kept or self._kept[-1].span.after == tip, "a cut leaves a whole chain"
        self._close()
        alive = {id(kept.segment) for kept in self._kept}
        for segment in [segment for segment in self._segments if id(segment) not in alive]:
            segment.path.unlink()
            self._segments.remove(segment)
        if self._segments:
            os.truncate(self._segments[-1].path, self._segments[-1].size)
        atomic_files.fsync_directory(self._directory)
        self.tip = tip
        if not self._kept:
            self._note_beginning(tip)

    def trim(self, grave_bytes: int) -> list[int]:
        """Drop the oldest segments beyond the bounds; gives the graves that nobody needs any more."""
        graves: list[int] = []
        while self._kept and self._is_beyond(grave_bytes):
            oldest = self._segments[0]
            if len(self._segments) == 1:
                assert self.tip is not None, "what is kept ends somewhere"
                return [*graves, *self.begin_at(self.tip)]
            count = 0
            while self._kept[count].segment is oldest:
                graves += self._unname(self._kept[count].span)
                count += 1
            del self._kept[:count]
            self._segments.pop(0).path.unlink()
            if graves:
                break  # the caller counts anew what graves take
        return graves

    def sync(self) -> None:
        """All that was kept so far is durable when this returns."""
        for segment in self._segments:
            with open(segment.path, "rb", buffering=0) as file:
                os.fdatasync(file.fileno())

    def close(self) -> None:
        self._close()

    # -- inside ----------------------------------------------------------------------------------------------

    def _note_beginning(self, tip: frames.Tip) -> None:
        """Where a chain without records stands."""
        packed = undo_records.encode_span(Span(tip, 0, tip))
        atomic_files.write_bytes(self._directory / _BEGINNING, packed)

    def _begun(self) -> frames.Tip | None:
        try:
            return undo_records.decode_span((self._directory / _BEGINNING).read_bytes()).before
        except (FileNotFoundError, errors.Corrupt):
            return None

    def _unname(self, span: Span) -> list[int]:
        """A record goes; the graves that no other names."""
        self.graves.subtract(_ids(span))
        gone = [grave for grave in _ids(span) if self.graves[grave] <= 0]
        for grave in gone:
            del self.graves[grave]
        return gone

    def _is_beyond(self, grave_bytes: int) -> bool:
        assert self.tip is not None and self._kept, "asked only of a chain"
        first = self._kept[0].span.before.position
        many = self.tip.position.sequence - first.sequence > self.bounds.frames
        return self.size_bytes + grave_bytes > self.bounds.size_bytes or (many and len(self._segments) > 1)

    def _writable(self, span: Span) -> _Segment:
        position, before = span.after.position, span.before.position.sequence
        most = max(1, self.bounds.size_bytes // _SEGMENTS_IN_BOUND)
        full = not self._segments or self._segments[-1].size >= most
        if not full and self.bounds.frames:
            covered = position.sequence - self._segments[-1].before
            full = covered > max(1, self.bounds.frames // _SEGMENTS_IN_BOUND)
        if full:
            self._close()
            path = self._directory / f"{position.epoch:020d}-{position.sequence:020d}{_SUFFIX}"
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            atomic_files.fsync_directory(self._directory)
            self._segments.append(_Segment(path, 0, before))
        elif self._fd < 0:
            self._fd = os.open(self._segments[-1].path, os.O_RDWR | os.O_CLOEXEC)
        return self._segments[-1]

    def _take_segment(self, path: Path) -> None:
        segment = _Segment(path, 0)
        size = path.stat().st_size
        with open(path, "rb", buffering=0) as file:
            fd = file.fileno()
            while segment.size < size:
                kept = _read_kept(fd, segment, size)
                if kept is None:
                    break
                if not segment.size:
                    segment.before = kept.span.before.position.sequence
                segment.size = kept.offset + kept.payload_bytes
                if self._kept and kept.span.before != self._kept[-1].span.after:
                    self._drop_all()  # it does not lead on from what is before
                self._kept.append(kept)
        if segment.size < size:
            os.truncate(path, segment.size)
        if segment.size:
            self._segments.append(segment)
        else:
            path.unlink()

    def _drop_all(self) -> None:
        for segment in self._segments:
            segment.path.unlink()
        self._segments, self._kept = [], []

    def _read(self, kept: _Kept) -> Record:
        with open(kept.segment.path, "rb", buffering=0) as file:
            payload = os.pread(file.fileno(), kept.payload_bytes, kept.offset)
        if undo_records.checksum(kept.span_bytes, (payload,)) != kept.checksum:
            raise undo_records.damaged(f"the one of {kept.span.after.position} has another checksum")
        return self._codec.decode(kept.span, payload)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_all(fd: int, parts: list[bytes], offset: int) -> None:
    for first in range(0, len(parts), _PARTS_MAX):
        some = parts[first : first + _PARTS_MAX]
        wanted = sum(map(len, some))
        done = os.pwritev(fd, some, offset)
        rest = b"" if done == wanted else b"".join(some)
        while done < wanted:
            done += os.pwrite(fd, rest[done:], offset + done)
        offset += wanted


def _ids(span: Span) -> list[int]:
    return [file_id for file_id, _ in span.graves]


def _read_kept(fd: int, segment: _Segment, size: int) -> _Kept | None:
    """The record at the segment's end so far, when it is whole. Its payload is proved when it is read."""
    head = os.pread(fd, _HEAD.size, segment.size)
    if len(head) < _HEAD.size:
        return None
    magic, span_bytes, payload_bytes, digest = _HEAD.unpack(head)
    offset = segment.size + _HEAD.size + span_bytes
    if magic != _MAGIC or span_bytes > _SPAN_MAX_BYTES or offset + payload_bytes > size:
        return None
    span = os.pread(fd, span_bytes, segment.size + _HEAD.size)
    last = offset + payload_bytes == size
    if last and undo_records.checksum(span, (os.pread(fd, payload_bytes, offset),)) != digest:
        return None
    return _Kept(undo_records.decode_span(span), segment, offset, span, payload_bytes, digest)
