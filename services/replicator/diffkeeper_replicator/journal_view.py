"""The journal of a replica, read by another process while the replicator goes on appending to it.

Nothing is opened for writing and nothing is cut. What stands at the end and is not whole yet is not there
yet. A record is believed when its bytes are those of its hash; whether frames follow each other is checked by
the caller, who knows what came before.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from diffkeeper.domain import errors, frames
from diffkeeper_replicator import journal


class JournalView:
    """For one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Where the records begin, by segment.
        self._offsets: dict[str, array[int]] = {}

    def frames_from(self, sequence: int) -> Iterator[frames.Frame]:
        """Frames in order, from this sequence on to the last that is whole. Raises Corrupt for damage before
        that, and nothing when the journal does not have the first.
        """
        while True:
            segments = self._segments()
            at = bisect_right(segments, sequence, key=lambda found: found[0]) - 1
            if at < 0:
                return
            before = sequence
            for frame in self._read(segments[at], sequence, is_last=at == len(segments) - 1):
                yield frame
                sequence += 1
            if sequence == before:
                return

    def read(self, sequence: int) -> frames.Frame | None:
        return next(self.frames_from(sequence), None)

    def first_sequence(self) -> int | None:
        segments = self._segments()
        return segments[0][0] if segments else None

    def sealed_sequence(self) -> int:
        """The last sequence of the segments that are not appended to any more; 0 when there is none."""
        segments = self._segments()
        return segments[-1][0] - 1 if len(segments) > 1 else 0

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for _, path in self._segments())

    def _segments(self) -> list[tuple[int, Path]]:
        try:
            found = sorted(self._directory.glob(f"*{journal.SUFFIX}"))
        except FileNotFoundError:
            return []
        return [(int(path.name.removesuffix(journal.SUFFIX)), path) for path in found]

    def _read(self, segment: tuple[int, Path], sequence: int, *, is_last: bool) -> Iterator[frames.Frame]:
        first, path = segment
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # cut away meanwhile
        try:
            offset = self._place(fd, path, sequence - first)
            if offset is not None and self._is_stale(fd, offset, sequence):
                del self._offsets[path.name]
                offset = self._place(fd, path, sequence - first)
            while offset is not None:
                found = journal.read_record(fd, offset)
                if found is None:
                    if not is_last and offset < os.fstat(fd).st_size:
                        raise _damaged(path, offset)
                    return
                frame, size = found
                if frame.position.sequence != sequence:
                    return
                yield frame
                offset += size
                sequence += 1
        finally:
            os.close(fd)

    def _is_stale(self, fd: int, offset: int, sequence: int) -> bool:
        """Whether what was learnt of a segment is not true any more: its tail was cut and others written."""
        if offset >= os.fstat(fd).st_size:
            return False
        found = journal.read_record(fd, offset)
        return found is None or found[0].position.sequence != sequence

    def _place(self, fd: int, path: Path, nth: int) -> int | None:
        """Where the ``nth`` record begins; None when there are not so many."""
        offsets = self._offsets.setdefault(path.name, array("Q", [0]))
        size = os.fstat(fd).st_size
        while offsets and offsets[-1] > size:
            offsets.pop()
        if not offsets:
            offsets.append(0)
        while len(offsets) <= nth:
            length = journal.record_bytes(fd, offsets[-1])
            if length is None or offsets[-1] + length > size:
                return None
            offsets.append(offsets[-1] + length)
        return offsets[nth]


def _damaged(path: Path, offset: int) -> errors.Corrupt:
    return errors.Corrupt(
        f"the journal is damaged in {path.name} at byte {offset}; history goes no further here",
        reason="journal-damaged",
        hint="another site may have it: dkctl verify",
        offset=offset,
    )
