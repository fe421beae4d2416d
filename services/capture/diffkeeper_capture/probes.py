"""The port to whatever sees writes: the eBPF probe and the portable one.

A probe serves many volumes, each under a slot number. ``BpfProbe`` delivers records in the order in which system calls
returned; the portable probe cannot know order or bytes, so it only says which paths may have changed, and the volume is
compared with what is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from diffkeeper_capture import records, write_lanes

# Called with each record and its payload; the view is valid only during the call.
RecordHandler = Callable[[records.Record, memoryview], None]


@dataclass(frozen=True, slots=True)
class Lost:
    """What the ring had no room for, since the probe started. A change means a gap in every volume named."""

    records: int
    # (volume slot, inode) of files whose writes were lost; empty with ``everywhere`` when that could not be kept.
    files: frozenset[tuple[int, int]]
    everywhere: bool
    # Of the records, calls at which the kernel left the probe out because it was running already.
    left_out: int = 0


class RecordProbe(Protocol):
    """A probe that sees each call, in order."""

    def watch(self, slot: int, root_fd: int) -> list[int]:
        """Begin to capture the directory open at ``root_fd`` and all below it on the same file system; the slots of
        a predecessor that this one replaces.
        """

    def unwatch(self, slot: int) -> None: ...

    def ignore(self, tgid: int) -> None:
        """Never record what this process does (replicators, servers, the agent itself)."""

    def fileno(self) -> int:
        """Readable when records wait."""

    def produced(self) -> int:
        """How many ring bytes have been produced: ``drain(upto=produced())`` delivers all that had returned before."""

    def drain(
        self,
        handle: RecordHandler,
        upto: int | None = None,
        most: int = 65_536,
        lanes: write_lanes.Lanes | None = None,
    ) -> int:
        """Deliver up to ``most`` records in order, at least to ``upto`` when given; how many were delivered.

        Plain writes go into their volume's lane, where there is one, instead of to ``handle``.
        """

    @property
    def identity(self) -> str:
        """Of the ring that positions are of."""

    def consumed(self) -> int:
        """How many ring bytes have been delivered."""

    @property
    def released(self) -> int:
        """How many ring bytes the kernel may use again; a successor begins to read there."""

    def release(self, position: int) -> None:
        """Nobody needs the records before ``position`` any more, not even a successor."""

    def replay(self, handle: RecordHandler, start: int, most: int) -> int:
        """Deliver again what was delivered from ``start`` on, at most so many records; where that ended."""

    def lost(self, *, surely: bool = True) -> Lost:
        """What was lost up to now; not ``surely``: what is known without asking the kernel, late by 0.1 s at most."""

    def close(self) -> None: ...
