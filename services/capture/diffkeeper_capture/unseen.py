"""Processes and files that are written in ways no record tells, and what follows from that.

A process that was seen to write to the volume and uses such a way makes the whole volume be compared at each
barrier; a file of which writes are known to come untold is read at each barrier. Each is said once by a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from diffkeeper_capture.doubts import Doubts
from diffkeeper_capture.framer import FrameSink
from diffkeeper_capture.records import NO_VOLUME, URING_CALL, Record
from diffkeeper_capture.shadow import Shadow
from diffkeeper_capture.system_calls import call_name

# Operations of io_uring: openat, openat2, fsetxattr, which are over when they are told; setxattr.
_URING_ONCE = frozenset({18, 28, 41})
_URING_SETXATTR = 42
_NUMBER = URING_CALL - 1


class Unseen:
    """Of one volume."""

    def __init__(
        self, shadow: Shadow, doubts: Doubts, sink: FrameSink, compare: Callable[[int], None]
    ) -> None:
        """``compare`` makes a file be compared at every barrier from now on."""
        self._compare = compare
        # Processes seen to write here, and those among them that also write in ways that cannot be seen.
        self.writers: set[int] = set()
        self.unseen_writers: set[int] = set()
        self._shadow = shadow
        self._doubts = doubts
        self._sink = sink
        # Processes that use such ways, and were not seen to write here.
        self.elsewhere: set[int] = set()
        # Names were changed by processes that may turn out to be writers: then they count.
        self._names_elsewhere: set[int] = set()
        self._told: set[tuple[int, str]] = set()

    def note_writer(self, tgid: int) -> None:
        if tgid in self.writers:
            return
        self.writers.add(tgid)
        if tgid in self._names_elsewhere:
            self._doubt_names(tgid)
        elif tgid in self.elsewhere:
            self._mark(tgid, "io_uring, AIO or 32-bit calls")

    def expect(self, tgids: Iterable[int]) -> None:
        """These processes belong to the volume's program: what they do unseen concerns it even before they
        write.
        """
        for tgid in tgids:
            self.note_writer(tgid)

    def take(self, record: Record) -> bool:
        """An UNSEEN record; True when the file with its inode is to be found and read."""
        if record.extra & URING_CALL:
            return self._take_uring(record)
        if record.volume != NO_VOLUME or record.tgid in self.writers:
            self.note_writer(record.tgid)
            self._mark(record.tgid, call_name(record.extra))
        else:
            self.elsewhere.add(record.tgid)
            self._names_elsewhere.discard(record.tgid)
        return False

    def _take_uring(self, record: Record) -> bool:
        operation = record.extra & _NUMBER
        if record.inode:
            self.note_writer(record.tgid)
            file_id = self._shadow.by_inode.get(record.inode)
            if operation not in _URING_ONCE and file_id is not None:
                self._compare(file_id)
                self.say_once(file_id, "io_uring", "written without a completion")
            return True
        if record.tgid in self.writers:
            self._doubt_names(record.tgid)
            self._doubts.everywhere_content |= operation == _URING_SETXATTR
        elif record.tgid not in self.elsewhere:
            # A successor knows it by the second alone, and compares more than it must.
            self._names_elsewhere.add(record.tgid)
            self.elsewhere.add(record.tgid)
        return False

    def _doubt_names(self, tgid: int) -> None:
        self._doubts.everything = True
        if (tgid, "names") not in self._told:
            self._told.add((tgid, "names"))
            self._sink.gap(
                "unseen-names", f"process {tgid} changes names by io_uring: all names are compared"
            )

    def _mark(self, tgid: int, call: str) -> None:
        if tgid not in self.unseen_writers:
            self.unseen_writers.add(tgid)
            self._sink.gap("unseen-writer", f"process {tgid} uses {call}, which is not followed")

    def say_once(self, file_id: int, cause: str, detail: str, offset: int = 0, length: int = 0) -> None:
        """A gap of one cause in one file, said the first time only; the fidelity of frames tells the rest."""
        if (file_id, cause) not in self._told:
            self._told.add((file_id, cause))
            path = self._shadow.readable_path(file_id)
            self._sink.gap(cause, f"{path}: {detail}", file_id, offset, length)
