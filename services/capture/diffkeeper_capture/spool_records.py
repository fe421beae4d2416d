"""The bytes of a spool's segment files, and how they are read back after a crash. Pure but for the bytes
handed in.

A record is ``DKS1``, u32 length, u32 CRC-32 of all that follows, u64 *synced*, then the frame's wire form.
Offsets count through the whole spool, so a segment file is named by the offset of its first byte. ``synced``
is how far the spool was known to be on disk when the record was written: a power cut may keep any part of
what was not synced, so a bad record is a torn tail unless a later good one says that its place had been
synced before; then it is damage.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from diffkeeper.domain import frames, limits, positions

MAGIC = b"DKS1"
_HEAD = struct.Struct("<4sIIQ")
_SYNCED = struct.Struct("<Q")
HEAD_BYTES = _HEAD.size


@dataclass(frozen=True, slots=True)
class Found:
    """A good record: where it starts in its segment, how long it is with its head, and what it holds."""

    at: int
    size: int
    position: positions.Position
    synced: int


def head(wire: bytes, synced: int) -> bytes:
    return _HEAD.pack(MAGIC, len(wire), _sum(wire, synced), synced)


def _sum(wire: bytes | memoryview, synced: int) -> int:
    return zlib.crc32(wire, zlib.crc32(_SYNCED.pack(synced)))


def wire_at(data: bytes | memoryview, at: int) -> tuple[memoryview, int] | None:
    """The wire form and ``synced`` of the record at ``at``; None when there is no whole good record."""
    view = memoryview(data)
    if len(view) - at < HEAD_BYTES:
        return None
    magic, length, checksum, synced = _HEAD.unpack_from(view, at)
    if magic != MAGIC or length > limits.FRAME_MAX_BYTES or at + HEAD_BYTES + length > len(view):
        return None
    wire = view[at + HEAD_BYTES : at + HEAD_BYTES + length]
    return (wire, synced) if _sum(wire, synced) == checksum else None


def scan(data: bytes) -> tuple[list[Found], int]:
    """The good records from the start of a segment, and the offset at which they end. Raises Corrupt for an
    alien frame.
    """
    found: list[Found] = []
    at = 0
    while (record := wire_at(data, at)) is not None:
        wire, synced = record
        # A whole record that is no frame was not torn: open_frame says what it is, and nothing is cut.
        position = frames.open_frame(bytes(wire)).position
        found.append(Found(at, HEAD_BYTES + len(wire), position, synced))
        at += found[-1].size
    return found, at


def synced_after(data: bytes, at: int) -> int:
    """The greatest ``synced`` that any good record beyond a bad one at ``at`` claims; 0 when
    there is none.
    """
    most = 0
    while (at := data.find(MAGIC, at + 1)) >= 0:
        record = wire_at(data, at)
        if record is not None:
            most = max(most, record[1])
    return most
