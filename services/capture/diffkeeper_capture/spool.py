"""The agent's local write-ahead log of frames: what is in it and synced survives the agent and a power cut.

A directory of segment files (see ``spool_records``). ``append`` hands a frame to the operating system,
``sync`` makes all appended so far durable, many waiters sharing one fsync. Segments whose frames are
confirmed elsewhere are dropped whole, never the newest. Positions must grow; one spool serves one origin. An
fsync that fails poisons the spool: the kernel may have thrown the pages away and will call the next fsync a
success, so nothing is durable here until the directory was opened again.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import errno
import fcntl
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from diffkeeper.domain import errors, frames, positions
from diffkeeper_capture import spool_records, syncers

# A segment is read whole when the spool is opened, and is the least that release() frees.
SEGMENT_BYTES = 16 * 1024 * 1024
DEFAULT_MAX_BYTES = 4 * 1024 * 1024 * 1024
# Behind a small frame zeros are written, so that those that follow overwrite: only then can they be synced without
# the file system's journal, which a program's own syncs wait for too. Frames larger than SMALL are few enough.
ROOM_BYTES = 512 * 1024
SMALL_BYTES = 64 * 1024
_SUFFIX = ".spool"


@dataclass(slots=True)
class _Segment:
    path: Path
    base: int  # offset of its first byte in the spool
    size: int = 0
    # One entry a record, by rising position.
    epochs: array[int] = field(default_factory=lambda: array("Q"))
    sequences: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, position: positions.Position, size: int) -> None:
        self.epochs.append(position.epoch)
        self.sequences.append(position.sequence)
        self.starts.append(self.size)
        self.size += size

    def position(self, index: int) -> positions.Position:
        return positions.Position(self.epochs[index], self.sequences[index])

    def after(self, position: positions.Position) -> int:
        """Index of the first record beyond ``position``."""
        key = (position.epoch, position.sequence)
        return bisect.bisect_right(
            range(len(self.starts)), key, key=lambda index: (self.epochs[index], self.sequences[index])
        )

    def cut(self, index: int) -> int:
        """Forget the records from ``index`` on; how many."""
        count = len(self.starts) - index
        if count:
            self.size = self.starts[index]
            del self.epochs[index:], self.sequences[index:], self.starts[index:]
        return count

    def end(self, index: int) -> int:
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.size


@dataclass(frozen=True, slots=True)
class Place:
    """Where records of one segment lie: a range to be read at once."""

    path: Path
    start: int
    end: int


class Spool:
    """Made by ``open``. Not for several threads, except ``load``."""

    def __init__(
        self, directory: Path, max_bytes: int, segment_bytes: int, lock: int, syncer: syncers.Syncer
    ) -> None:
        self.directory = directory
        self._syncer = syncer
        self.max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._lock = lock
        self._segments: list[_Segment] = []
        self._file = -1  # the newest segment, open for appending
        self._room = 0  # up to here the newest segment has been written, with records or zeros
        # Segments written to since the last sync began, oldest first, each with a descriptor of its own.
        self._dirty: list[int] = []
        self._directory_dirty = False
        self._synced = 0
        self._sync: asyncio.Future[None] | None = None
        self._syncing: list[int] = []  # descriptors of the one under way
        # A sync was asked for whose bytes the one under way may not have.
        self._sync_again = False
        self._poison: OSError | None = None
        # Called when more is durable, and when nothing will be any more.
        self.on_synced: Callable[[], None] = lambda: None
        self.first: positions.Position | None = None
        self.last: positions.Position | None = None
        self.durable: positions.Position | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        max_bytes: int = DEFAULT_MAX_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        make_syncer: Callable[[], syncers.Syncer] = syncers.ExecutorSyncer,
    ) -> Self:
        """Read what is there, verify it, cut a torn tail; everything kept is durable afterwards.

        Raises Corrupt (nothing changed) when a record is damaged that had been synced, Refused when another
        process has it. Blocks for as long as reading takes.
        """
        directory.mkdir(parents=True, exist_ok=True)
        lock = _take(directory)
        spool = cls(directory, max_bytes, segment_bytes, lock, make_syncer())
        try:
            spool._recover()
        except BaseException:
            spool.close()
            raise
        return spool

    @property
    def bytes_kept(self) -> int:
        return self._end() - self._segments[0].base if self._segments else 0

    def append(self, frame: frames.Frame) -> None:
        """Hand a frame to the operating system. Raises Transient (``spool-full``, ``spool-disk-full``) and
        keeps nothing of it.
        """
        self._check_poison()
        assert self.last is None or frame.position > self.last, "positions in a spool grow"
        size = spool_records.HEAD_BYTES + len(frame.wire)
        if self.bytes_kept + size > self.max_bytes:
            raise errors.Transient(
                f"the spool is full ({self.bytes_kept} bytes); frame {frame.position} was not taken",
                reason="spool-full",
                hint="frames leave the spool when two holders have confirmed them: dkctl status",
                kept_bytes=self.bytes_kept,
            )
        segment = self._segments[-1] if self._segments else None
        if segment is None or (segment.size and segment.size + size > self._segment_bytes):
            segment = self._begin_segment()
        self._write(segment, [spool_records.head(frame.wire, frame.hash, self._synced), frame.wire], size)
        segment.add(frame.position, size)
        if segment.size > self._room:
            self._room = segment.size
            if size <= SMALL_BYTES:
                self._make_room(segment)
        self.first = self.first or frame.position
        self.last = frame.position

    async def sync(self) -> positions.Position | None:
        """Make durable everything appended before the call; returns the last durable position. Raises Corrupt
        when poisoned.
        """
        target = self._end()
        while self._synced < target:
            self._check_poison()
            self._begin_sync()
            assert self._sync is not None, "it was begun"
            # Not awaited itself: one waiter that gives up must not take the fsync from the others.
            await asyncio.wait([self._sync])
        return self.durable

    @property
    def is_poisoned(self) -> bool:
        return self._poison is not None

    def sync_soon(self) -> None:
        """Begin at once to make durable what was appended so far, for nobody who waits; ``on_synced`` tells."""
        if self._synced >= self._end() or self._poison is not None:
            return
        self._sync_again = self._sync is not None
        self._begin_sync()

    def release(self, position: positions.Position) -> None:
        """Drop whole segments that hold nothing beyond ``position``, oldest first; the newest
        always stays.
        """
        while len(self._segments) > 1 and self._segments[0].position(-1) <= position:
            self._segments.pop(0).path.unlink()
            self.first = self._segments[0].position(0)

    def cut_after(self, position: positions.Position) -> int:
        """Take back the frames beyond ``position``, which nobody else has seen; how many. Not while ``sync`` runs."""
        taken = 0
        while self._segments and self._segments[-1].after(position) == 0:
            taken += len(self._segments[-1].starts)
            self._segments.pop().path.unlink()
        if self._segments:
            taken += self._segments[-1].cut(self._segments[-1].after(position))
        if not taken:
            return 0
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self.first = self.last = self.durable = None
        self._room = 0
        if self._segments:
            newest = self._segments[-1]
            os.truncate(newest.path, newest.size)
            self._room = newest.size
            self._file = os.open(newest.path, os.O_WRONLY | os.O_CLOEXEC)
            self.first, self.last = self._segments[0].position(0), newest.position(-1)
            self.durable = self.last
        self._synced = min(self._synced, self._end())
        self._directory_dirty = True
        return taken

    def places_after(self, position: positions.Position, max_bytes: int) -> list[Place]:
        """Where the frames beyond ``position`` lie, up to about ``max_bytes``, at least one
        when there is one.
        """
        places: list[Place] = []
        room = max_bytes
        for segment in self._segments:
            index = segment.after(position)
            if index == len(segment.starts):
                continue
            start = segment.starts[index]
            stop = bisect.bisect_right(segment.starts, start + room - 1, lo=index + 1)
            end = segment.end(stop - 1)
            places.append(Place(segment.path, start, end))
            room -= end - start
            if room <= 0:
                break
        return places

    @staticmethod
    def load(places: list[Place]) -> list[frames.Frame]:
        """Read and verify frames; touches no state, so it may run in a thread. Raises Corrupt
        when one is damaged.
        """
        loaded: list[frames.Frame] = []
        for place in places:
            with place.path.open("rb") as file:
                file.seek(place.start)
                data = file.read(place.end - place.start)
            at = 0
            while at < place.end - place.start:
                frame = spool_records.frame_at(data, at)
                if frame is None:
                    raise _damaged(place.path, place.start + at, None)
                loaded.append(frame)
                at += spool_records.HEAD_BYTES + len(frame.wire)
        return loaded

    def bytes_after(self, position: positions.Position) -> int:
        """How many bytes the frames beyond ``position`` take here."""
        for segment in self._segments:
            index = segment.after(position)
            if index < len(segment.starts):
                return self._end() - segment.base - segment.starts[index]
        return 0

    def frames_after(self, position: positions.Position) -> Iterator[frames.Frame]:
        """Every frame beyond ``position`` that the spool holds, in order. Blocks while it reads."""
        while places := self.places_after(position, 4 * 1024 * 1024):
            for frame in self.load(places):
                position = frame.position
                yield frame

    def find(self, position: positions.Position) -> frames.Frame | None:
        """The frame at exactly ``position``."""
        for segment in self._segments:
            index = segment.after(position) - 1
            if index >= 0 and segment.position(index) == position:
                return self.load([Place(segment.path, segment.starts[index], segment.end(index))])[0]
        return None

    def close(self) -> None:
        """Forget the files; what was not synced is left to the operating system."""
        self._syncer.close()
        self._forget_sync()
        self._give_room_back()
        for descriptor in (*self._dirty, self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._dirty, self._file, self._lock = [], -1, -1

    def _end(self) -> int:
        return self._segments[-1].base + self._segments[-1].size if self._segments else 0

    def _begin_segment(self) -> _Segment:
        base = self._end()
        segment = _Segment(self.directory / f"{base:016x}{_SUFFIX}", base)
        with _disk_full(self.directory):
            file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._leave_file()
        self._file, self._room = file, 0
        self._directory_dirty = True
        self._segments.append(segment)
        return segment

    def _leave_file(self) -> None:
        """The newest segment is full: its descriptor waits for the next sync."""
        if self._file >= 0:
            self._give_room_back()
            self._dirty.append(self._file)
            self._file = -1

    def _make_room(self, segment: _Segment) -> None:
        """Zeros behind the last record. No room on the disk is no trouble yet: the next record will tell."""
        most = min(ROOM_BYTES, self._segment_bytes - segment.size)
        if most <= 0:
            return
        with contextlib.suppress(errors.Transient), _disk_full(self.directory):
            self._room += os.pwrite(self._file, bytes(most), segment.size)

    def _give_room_back(self) -> None:
        if self._file >= 0 and self._segments and self._room > self._segments[-1].size:
            os.ftruncate(self._file, self._segments[-1].size)
            self._room = self._segments[-1].size

    def _write(self, segment: _Segment, parts: list[bytes], size: int) -> None:
        try:
            with _disk_full(self.directory):
                written = os.pwritev(self._file, parts, segment.size)
                if written < size:
                    rest = memoryview(b"".join(parts))
                    while written < size:
                        written += os.pwrite(self._file, rest[written:], segment.size + written)
        except BaseException:
            # The next record begins where this one did; what is behind it must not be taken for one.
            os.ftruncate(self._file, segment.size)
            self._room = segment.size
            raise

    def _begin_sync(self) -> None:
        """One at a time, beside the loop."""
        if self._sync is not None:
            return
        end, last = self._end(), self.last
        full, self._dirty = self._dirty, []
        directory, self._directory_dirty = self._directory_dirty, False
        files = [*full, os.dup(self._file)]
        place = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC) if directory else None
        self._syncing = files if place is None else [*files, place]
        under_way = self._sync = asyncio.get_running_loop().create_future()

        def ended(failure: OSError | None) -> None:
            self._forget_sync()
            if failure is None:
                self._synced, self.durable = end, last
            else:
                # Not raised here: every waiter finds it.
                self._poison = failure
            under_way.set_result(None)
            self.on_synced()
            if self._sync_again:
                self._sync_again = False
                self.sync_soon()

        self._syncer.begin(files, place, ended)

    def _forget_sync(self) -> None:
        self._sync = None
        for descriptor in self._syncing:
            os.close(descriptor)
        self._syncing = []

    def _check_poison(self) -> None:
        if self._poison is not None:
            raise errors.Corrupt(
                f"fsync of the spool in {self.directory} failed ({self._poison}); nothing since is durable",
                reason="spool-poisoned",
                hint="check the disk (dmesg), then restart the agent: it verifies what the disk really holds",
                durable=str(self.durable),
            ) from self._poison

    def _recover(self) -> None:
        paths = sorted(self.directory.glob(f"*{_SUFFIX}"))
        for number, path in enumerate(paths):
            data = _read_from_disk(path)
            segment = _Segment(path, int(path.stem, 16))
            found, good = spool_records.scan(data)
            for record in found:
                segment.add(record.position, record.size)
            if spool_records.is_room(data, good):
                data = data[:good]
            contiguous = not self._segments or segment.base == self._end()
            if contiguous and segment.starts:
                self._segments.append(segment)
            if good < len(data) or not contiguous or not segment.starts:
                bad = segment.base + good if contiguous else self._end()
                self._cut(path if contiguous else None, good, bad, paths[number:], data)
                break
        if self._segments:
            newest = self._segments[-1]
            self._file = os.open(newest.path, os.O_WRONLY | os.O_CLOEXEC)
            os.ftruncate(self._file, newest.size)
            self._room = newest.size
            self.first, self.last = self._segments[0].position(0), newest.position(-1)
        self.durable, self._synced = self.last, self._end()

    def _cut(self, torn: Path | None, good: int, bad: int, rest: list[Path], data: bytes) -> None:
        """End the spool at offset ``bad``, unless something behind it proves that more had been synced."""
        later = spool_records.synced_after(data, good if torn is not None else -1)
        for path in rest[1:]:
            later = max(later, spool_records.synced_after(_read_from_disk(path), -1))
        if later > bad:
            raise _damaged(rest[0], good, self._segments[-1].position(-1) if self._segments else None)
        for path in rest if torn is None or not good else rest[1:]:
            path.unlink()
        if torn is not None and good:
            os.truncate(torn, good)
            _fsync_path(torn)
        _fsync_path(self.directory)


def _take(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise errors.Refused(
            f"another process uses the spool in {directory}",
            reason="spool-busy",
            hint="one agent a volume: dkctl status",
        ) from None
    return lock


@contextlib.contextmanager
def _disk_full(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise errors.Transient(
            f"the disk of the spool in {directory} is full; the frame was not taken",
            reason="spool-disk-full",
            hint="free disk space; captured writes wait until there is room",
        ) from error


def _read_from_disk(path: Path) -> bytes:
    """The bytes the disk holds, not those a failed fsync left in the page cache. Raises Corrupt when it
    cannot be made to hold them.
    """
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return file.read()
        except OSError as error:
            raise errors.Corrupt(
                f"{path} cannot be made durable or read ({error}); it was left as it is",
                reason="spool-unreadable",
                hint="check the disk (dmesg)",
            ) from error


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, at: int, kept: positions.Position | None) -> errors.Corrupt:
    return errors.Corrupt(
        f"{path} is damaged at byte {at}, in a record that had been synced; the files were left as they are",
        reason="spool-damaged",
        hint="frames up to the damage are good; later ones may be in the site's stream (dkctl verify)",
        path=str(path),
        at=at,
        kept=str(kept) if kept is not None else "",
    )
