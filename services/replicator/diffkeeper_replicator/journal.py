"""The replica's own log on disk: every verified frame as it came, in order, in segment files.

``append`` returns when its frames are on disk: that is what a replicator confirms. A record is a head (struct
below) and the frame's wire bytes; the frame's BLAKE3 hash is the record's checksum. Each head also tells how
far its segment was known to be on disk when it was written, so that on open a torn tail (cut off, and fetched
again from the stream) can be told from damage to something that had been confirmed (Corrupt, never cut). One
thread appends; any thread may read. Zeros at the end of the last segment are room made ready: small records that
overwrite it are synced without the file system's journal, which others on the same disk wait for too.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from diffkeeper.domain import errors, frames, limits, positions

SEGMENT_BYTES = 64 * 1024 * 1024
# How much room is made behind a batch of at most so many bytes; larger ones are few enough.
ROOM_BYTES = 1024 * 1024
SMALL_BYTES = 64 * 1024
_MAGIC = b"DKR1"
# magic, bytes of wire, epoch, sequence, bytes of this segment known durable, frame hash; then crc32 of these
_HEAD = struct.Struct("<4sIQQQ32s")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size
# One offset of each so many records is kept in memory.
_STRIDE = 32
SUFFIX = ".journal"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class Record(NamedTuple):
    wire_bytes: int
    position: positions.Position
    durable_to: int
    hash: bytes


class _Segment:
    """One file: where some of its records begin. ``count`` and ``end`` are None until it has been looked
    through.
    """

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self.marks = array("Q")
        self.count = 0
        self.end = 0
        self.indexed = False

    def add(self, wire_bytes: int) -> None:
        if self.count % _STRIDE == 0:
            self.marks.append(self.end)
        self.count += 1
        self.end += HEAD_BYTES + wire_bytes


class Journal:
    def __init__(self, directory: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()  # guards _segments and what is in them
        self._segments: list[_Segment] = []
        self._fd = -1  # of the last segment
        self._room = 0  # up to here the last segment has been written, with records or zeros
        self._durable_to = 0  # in the last segment
        self._poison: OSError | None = None
        # What was cut off the end on open, in bytes.
        self.cut_bytes = 0
        # Invariant: everything up to here is on disk.
        self.tip = frames.ORIGIN_TIP

    @classmethod
    def open(
        cls, directory: Path, *, segment_bytes: int = SEGMENT_BYTES, distrust_cache: bool = False
    ) -> Journal:
        """Open or begin a journal; the last segment is verified and its torn tail cut.

        ``distrust_cache`` (after a failed fsync) drops cached pages first and verifies every segment. Raises
        Corrupt for damage to what had been durable.
        """
        journal = cls(directory, segment_bytes)
        directory.mkdir(parents=True, exist_ok=True)
        found = sorted(directory.glob(f"*{SUFFIX}"))
        journal._segments = [_Segment(path, int(path.name.removesuffix(SUFFIX))) for path in found]
        if distrust_cache:
            for segment in journal._segments:
                _drop_cache(segment.path)
        journal._recover()
        if distrust_cache:
            for _ in journal.frames_from(journal.first):
                pass
        return journal

    @property
    def poisoned(self) -> bool:
        """An fsync failed: nothing is appended until the journal has been opened anew and verified."""
        return self._poison is not None

    @property
    def size_bytes(self) -> int:
        with self._lock:
            last = self._segments[-1].end if self._segments else 0
            return last + sum(segment.path.stat().st_size for segment in self._segments[:-1])

    def append(self, batch: Sequence[frames.Frame]) -> frames.Tip:
        """Frames that continue the tip, on disk when this returns: one write, one fsync for all. Blocking.

        Raises Corrupt for a frame that does not follow (nothing of the batch is kept), Transient
        ``disk-full`` (likewise), Corrupt ``journal-poisoned`` when the disk did not take it.
        """
        if self._poison is not None:
            raise _poisoned(self._poison)
        tip = self.tip
        for frame in batch:
            if frames.follows(tip, frame) is not frames.Follows.NEXT:
                raise errors.Corrupt(
                    f"frame {frame.position} does not continue the journal at {tip.position}; it was not "
                    "kept",
                    reason="does-not-follow",
                )
            tip = frames.Tip(frame.position, frame.hash)
        if not batch:
            return tip
        segment = self._writable(batch[0].position.sequence)
        self._write(segment, batch)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # The kernel may have dropped the pages and called them clean: a second fsync would lie.
            self._poison = error
            raise _poisoned(error) from error
        with self._lock:
            for frame in batch:
                segment.add(len(frame.wire))
            self._durable_to = segment.end
            self.tip = tip
        return tip

    def read(self, position: positions.Position) -> frames.Frame:
        """The frame at ``position``; raises NotFound when the journal does not hold it."""
        place = self._find(position.sequence)
        if place is not None:
            with open(place[0].path, "rb", buffering=0) as file:
                record, frame = _read(file.fileno(), place[1], place[0].path)
            if record.position == position:
                return frame
        raise errors.NotFound(f"the journal does not hold frame {position}", reason="not-in-journal")

    def frames_after(self, position: positions.Position) -> Iterator[frames.Frame]:
        """Every frame after ``position`` that is durable now, in order, each verified and chained to the one
        before. Raises Corrupt (``not-in-journal``) when the journal goes on from elsewhere.
        """
        for frame in self.frames_from(position.sequence + 1):
            if frame.position.sequence == position.sequence + 1 and frame.header.parent != position:
                raise errors.Corrupt(
                    f"the journal goes on from {frame.header.parent} and not from {position}",
                    reason="not-in-journal",
                    hint="rebuild the replica: its directory holds a tail that the chain left behind",
                )
            yield frame

    def frames_from(self, sequence: int) -> Iterator[frames.Frame]:
        """The same from a sequence on, whatever its epoch."""
        tip: frames.Tip | None = frames.ORIGIN_TIP if sequence == 1 else None
        while True:
            # Before looking: frames that are appended meanwhile are not missing.
            last = self.tip.position.sequence
            place = self._find(sequence)
            if place is None:
                break
            segment, offset = place
            with open(segment.path, "rb", buffering=0) as file:
                while offset < segment.end:
                    record, frame = _read(file.fileno(), offset, segment.path)
                    if tip is not None and frames.follows(tip, frame) is not frames.Follows.NEXT:
                        raise _damaged(segment.path, offset, "it does not continue the frame before it")
                    tip = frames.Tip(frame.position, frame.hash)
                    offset += HEAD_BYTES + record.wire_bytes
                    sequence += 1
                    yield frame
        if sequence <= last:
            raise _damaged(self._directory, 0, f"frame number {sequence} is missing")

    @property
    def first(self) -> int:
        """The first sequence held; 1 unless older segments were dropped."""
        with self._lock:
            return self._segments[0].first if self._segments else 1

    def drop_upto(self, sequence: int) -> int:
        """Remove the oldest segments, as long as they hold nothing beyond ``sequence`` and others follow; how
        many bytes that freed. The caller knows that what they hold is kept elsewhere, durably.
        """
        freed = 0
        while True:
            with self._lock:
                if len(self._segments) < 2 or self._segments[1].first > sequence + 1:
                    break
                gone = self._segments.pop(0).path
            freed += gone.stat().st_size
            gone.unlink()
            _sync_directory(self._directory)
        return freed

    def cut_after(self, position: positions.Position) -> None:
        """Drop every frame after ``position``. The caller has put them elsewhere, durably."""
        kept = self.read(position) if position != positions.START else None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with self._lock:
            while self._segments and self._segments[-1].first > position.sequence:
                self._segments.pop().path.unlink()
        _sync_directory(self._directory)
        place = self._find(position.sequence)
        if kept is not None and place is not None:
            fd = os.open(place[0].path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, place[1] + HEAD_BYTES + len(kept.wire))
                os.fsync(fd)
            finally:
                os.close(fd)
        with self._lock:
            self._segments = [_Segment(segment.path, segment.first) for segment in self._segments]
            self.tip = frames.ORIGIN_TIP
        self._recover()

    def close(self) -> None:
        if self._fd >= 0:
            self._give_room_back()
            os.close(self._fd)
            self._fd = -1

    # -- inside ----------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Find the tip: verify the last segment, cut what is torn, drop segments left without a record."""
        while self._segments:
            segment = self._segments[-1]
            tip, torn = _verify_segment(segment)
            self.cut_bytes += torn
            if tip is not None:
                self._fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
                self._room = segment.end
                if torn:
                    os.ftruncate(self._fd, segment.end)
                # What a killed predecessor had written but not synced is whole, and durable only from here
                # on.
                os.fsync(self._fd)
                self._durable_to = segment.end
                self.tip = tip
                break
            segment.path.unlink()
            self._segments.pop()
        _sync_directory(self._directory)

    def _writable(self, sequence: int) -> _Segment:
        if self._segments and self._fd >= 0 and self._segments[-1].end < self._segment_bytes:
            return self._segments[-1]
        path = self._directory / f"{sequence:020d}{SUFFIX}"
        try:
            if self._give_room_back():
                os.fsync(self._fd)  # no segment but the last may end in zeros
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            _sync_directory(self._directory)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise _full() from error
            self._poison = error
            raise _poisoned(error) from error
        self.close()
        self._fd = fd
        self._durable_to = self._room = 0
        segment = _Segment(path, sequence)
        segment.indexed = True
        with self._lock:
            self._segments.append(segment)
        return segment

    def _write(self, segment: _Segment, batch: Sequence[frames.Frame]) -> None:
        parts: list[bytes] = []
        for frame in batch:
            head = _HEAD.pack(
                _MAGIC,
                len(frame.wire),
                frame.position.epoch,
                frame.position.sequence,
                self._durable_to,
                frame.hash,
            )
            parts += (head, _CRC.pack(zlib.crc32(head)), frame.wire)
        try:
            end = segment.end + _write_all(self._fd, parts, segment.end)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self._poison = error
                raise _poisoned(error) from error
            os.ftruncate(self._fd, segment.end)
            self._room = segment.end
            raise _full() from error
        if end > self._room:
            self._room = end
            if end - segment.end <= SMALL_BYTES:
                self._make_room(end)

    def _make_room(self, end: int) -> None:
        """Zeros behind the last record. A full disk is no trouble yet: the next record will tell."""
        most = min(ROOM_BYTES, self._segment_bytes - end)
        if most <= 0:
            return
        try:
            self._room += os.pwrite(self._fd, bytes(most), end)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self._poison = error
                raise _poisoned(error) from error

    def _give_room_back(self) -> bool:
        """Cut the zeros off; whether there were any."""
        if self._fd < 0 or not self._segments or self._room <= self._segments[-1].end:
            return False
        self._room = self._segments[-1].end
        os.ftruncate(self._fd, self._room)
        return True

    def _find(self, sequence: int) -> tuple[_Segment, int] | None:
        """Segment and offset of the record with this sequence."""
        with self._lock:
            if not 1 <= sequence <= self.tip.position.sequence:
                return None
            at = bisect_right(self._segments, sequence, key=lambda segment: segment.first) - 1
            if at < 0:
                return None
            segment = self._segments[at]
            if not segment.indexed:
                _index(segment)
        nth = sequence - segment.first
        if nth >= segment.count:
            return None
        offset = segment.marks[nth // _STRIDE]
        with open(segment.path, "rb", buffering=0) as file:
            for _ in range(nth % _STRIDE):
                offset += HEAD_BYTES + _read_head(file.fileno(), offset, segment.path).wire_bytes
        return segment, offset


def _write_all(fd: int, parts: Sequence[bytes], offset: int) -> int:
    """All of ``parts`` at ``offset``, in as few calls as the kernel allows; how many bytes they are."""
    begin = offset
    for first in range(0, len(parts), 1023):  # IOV_MAX is 1024
        some = parts[first : first + 1023]
        wanted = sum(map(len, some))
        done = os.pwritev(fd, some, offset)
        if done < wanted:
            rest = memoryview(b"".join(some))
            while done < wanted:
                done += os.pwrite(fd, rest[done:], offset + done)
        offset += wanted
    return offset - begin


def _parse_head(data: bytes) -> Record | None:
    if len(data) < HEAD_BYTES or data[:4] != _MAGIC:
        return None
    if _CRC.unpack_from(data, _HEAD.size)[0] != zlib.crc32(data[: _HEAD.size]):
        return None
    _, wire_bytes, epoch, sequence, durable_to, digest = _HEAD.unpack_from(data)
    if wire_bytes > limits.FRAME_MAX_BYTES:
        return None
    return Record(wire_bytes, positions.Position(epoch, sequence), durable_to, digest)


def _read_head(fd: int, offset: int, path: Path) -> Record:
    record = _parse_head(os.pread(fd, HEAD_BYTES, offset))
    if record is None:
        raise _damaged(path, offset, "its head is not readable")
    return record


def _try_read(fd: int, offset: int) -> tuple[Record, frames.Frame] | None:
    """The record at ``offset`` when it is whole and is what it says."""
    record = _parse_head(os.pread(fd, HEAD_BYTES, offset))
    if record is None:
        return None
    try:
        frame = frames.open_frame(os.pread(fd, record.wire_bytes, offset + HEAD_BYTES))
    except errors.Corrupt:
        return None
    return (record, frame) if frame.hash == record.hash and frame.position == record.position else None


def read_record(fd: int, offset: int) -> tuple[frames.Frame, int] | None:
    """For readers in other processes: the frame at ``offset`` and the bytes of its record, or None where no
    whole one stands.
    """
    found = _try_read(fd, offset)
    return None if found is None else (found[1], HEAD_BYTES + found[0].wire_bytes)


def record_bytes(fd: int, offset: int) -> int | None:
    """How long the record at ``offset`` is by its head."""
    record = _parse_head(os.pread(fd, HEAD_BYTES, offset))
    return None if record is None else HEAD_BYTES + record.wire_bytes


def _read(fd: int, offset: int, path: Path) -> tuple[Record, frames.Frame]:
    found = _try_read(fd, offset)
    if found is None:
        raise _damaged(path, offset, "its bytes are not those of its hash")
    return found


def _index(segment: _Segment) -> None:
    """Look through the heads of a segment that was sealed earlier."""
    with open(segment.path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while segment.end < size:
            segment.add(_read_head(file.fileno(), segment.end, segment.path).wire_bytes)
    segment.indexed = True


def _verify_segment(segment: _Segment) -> tuple[frames.Tip | None, int]:
    """Index a segment record by record; its tip (None without records) and how many bytes at its end are
    torn.
    """
    tip: frames.Tip | None = None
    with open(segment.path, "rb", buffering=0) as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        while segment.end < size:
            found = _try_read(fd, segment.end)
            if found is None:
                _check_torn(fd, segment, size)
                break
            record, frame = found
            expected = segment.first if tip is None else tip.position.sequence + 1
            if record.position.sequence != expected:
                raise _damaged(
                    segment.path, segment.end, f"it holds {record.position} in the place of {expected}"
                )
            if tip is not None and frames.follows(tip, frame) is not frames.Follows.NEXT:
                raise _damaged(segment.path, segment.end, "it does not continue the frame before it")
            segment.add(record.wire_bytes)
            tip = frames.Tip(frame.position, frame.hash)
    segment.indexed = True
    return tip, size - segment.end


def _check_torn(fd: int, segment: _Segment, size: int) -> None:
    """Raise Corrupt when a later record says that the bad place had been durable: then it is rot and not a
    torn write.
    """
    tail = os.pread(fd, size - segment.end, segment.end)
    at = tail.find(_MAGIC, 1)
    while at >= 0:
        later = _parse_head(tail[at : at + HEAD_BYTES])
        if later is not None and segment.end < later.durable_to <= segment.end + at:
            raise _damaged(segment.path, segment.end, "it had been on disk and confirmed")
        at = tail.find(_MAGIC, at + 1)


def _drop_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _full() -> errors.Transient:
    return errors.Transient(
        "no room on the disk of the journal; nothing more is confirmed until there is",
        reason="disk-full",
        hint="free space on the file system of the replicator's data directory (df -h)",
    )


def _poisoned(error: OSError) -> errors.Corrupt:
    return errors.Corrupt(
        f"the journal's disk failed ({error}); nothing more is confirmed until it was opened and verified "
        "again",
        reason="journal-poisoned",
        hint="check the disk (dmesg)",
    )


def _damaged(path: Path, offset: int, why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"the journal is damaged in {path.name} at byte {offset}: {why}; it was left as it is",
        reason="journal-damaged",
        hint="move the volume's journal aside; it is fetched again from the streams",
        offset=offset,
    )
