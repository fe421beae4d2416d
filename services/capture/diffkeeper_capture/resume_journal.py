"""From which record of the ring a killed agent's successor goes on, and with what in mind.

The spool holds what was made of the records; this file, beside it, says after each group of frames how far in the
ring that was, and what the observer knew then that frames do not carry (which inode is which file). It lives as
long as the ring: through the death of the agent, not of the machine, so it is written and never synced. Between a
*mark* and the frames before it stands an order that makes it true whenever the agent dies: frames into the spool,
the mark into this file, frames to the publisher. So frames behind the last mark have been nowhere else and are
taken back, to be made again from the records. Frames that no mark follows are announced by a *break*: from there
on nothing can be gone on with, until the next mark.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from diffkeeper.domain import errors, frames, positions

_HEAD = struct.Struct("<II")
# A mark with a new binding for every file of a large volume; what claims to be longer is torn.
_ENTRY_MAX_BYTES = 1 << 30

GUESSED, UNVERIFIED, MAPPED, COMPARED = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class Memory:
    """What an observer knows beyond the tree; of some things only what changed since the mark before."""

    made_ns: int  # CLOCK_MONOTONIC
    compared_ns: int
    # Something had still to be compared with the disk.
    is_doubtful: bool
    is_floored: bool
    # (id, inode or 0, generation, GUESSED | UNVERIFIED | MAPPED | COMPARED), changed.
    bindings: list[tuple[int, int, int, int]] = field(default_factory=list)
    # (inode, CLOCK_MONOTONIC) of files that lost their last name, new.
    gone: list[tuple[int, int]] = field(default_factory=list)
    # Processes that write here, that write here unseen, that do so perhaps elsewhere: new.
    writers: list[int] = field(default_factory=list)
    unseen: list[int] = field(default_factory=list)
    unseen_elsewhere: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mark:
    """All records before ``at`` are in frames up to ``tip``."""

    ring: str  # whose positions these are
    slot: int
    at: int
    tip: frames.Tip
    lost: int  # records lost before, as the probe counts them
    gaps: int
    memory: Memory


class ResumeJournal:
    """The file while it is written; one writer. Raises OSError, and then the last mark still stands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def begin(self, mark: Mark) -> None:
        """Replace all there is by one mark, behind a tree state that has all bindings up to it or in it."""
        data = _encode(mark)
        temporary = self._path.with_suffix(".new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write(file, data)
            os.rename(temporary, self._path)
        except BaseException:
            os.close(file)
            raise
        self.close()
        self._file = file

    def go_on(self) -> None:
        """Write on behind the last mark of a predecessor."""
        self.close()
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        with open(self._path, "rb") as file:
            os.ftruncate(self._file, _good_bytes(file.read()))

    def note(self, mark: Mark) -> None:
        assert self._file >= 0, "a journal begins with a mark that has everything"
        size = os.fstat(self._file).st_size
        try:
            _write(self._file, _encode(mark))
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def break_off(self) -> None:
        """Frames are about to be published that no mark follows. Needs no room, so a full disk does not refuse it."""
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _write(file: int, data: bytes) -> None:
    if os.write(file, data) != len(data):
        raise OSError(errno.ENOSPC, "the disk took a part of a mark")


def _encode(mark: Mark) -> bytes:
    position = mark.tip.position
    head = (
        mark.ring,
        mark.slot,
        mark.at,
        position.epoch,
        position.sequence,
        mark.tip.hash,
        mark.lost,
        mark.gaps,
    )
    body: bytes = msgpack.packb((*head, astuple(mark.memory)))
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def read(path: Path, ring: str) -> tuple[Mark, list[Memory]] | None:
    """The last mark for this ring, and the memories up to it in order; None when there is none."""
    marks: list[Mark] = []
    try:
        marks = list(_entries(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise errors.Misconfigured(
            f"{path} cannot be read: {error}",
            reason="resume-journal-unreadable",
            hint="remove it: then everything is compared with the disk once",
        ) from error
    if not marks or marks[-1].ring != ring:
        return None
    return marks[-1], [mark.memory for mark in marks]


def _entries(data: bytes) -> Iterator[Mark]:
    for at, length in _good(data):
        yield _mark(msgpack.unpackb(data[at + _HEAD.size : at + _HEAD.size + length], use_list=False))


def _good(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length of the body) of every whole entry; what follows them was being written at the end."""
    at = 0
    while len(data) - at >= _HEAD.size:
        length, checksum = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        # Zeros are what a file system shows of room whose data a power cut kept from the disk.
        if not 0 < length <= _ENTRY_MAX_BYTES or len(body) < length or zlib.crc32(body) != checksum:
            return
        yield at, length
        at += _HEAD.size + length


def _good_bytes(data: bytes) -> int:
    return max((at + _HEAD.size + length for at, length in _good(data)), default=0)


def _mark(entry: Any) -> Mark:
    ring, slot, at, epoch, sequence, digest, lost, gaps, memory = entry
    made_ns, compared_ns, is_doubtful, is_floored, *lists = memory
    return Mark(
        ring,
        slot,
        at,
        frames.Tip(positions.Position(epoch, sequence), digest),
        lost,
        gaps,
        Memory(made_ns, compared_ns, is_doubtful, is_floored, *map(list, lists)),
    )
