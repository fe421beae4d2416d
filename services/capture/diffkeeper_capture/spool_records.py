"""The bytes of a spool's segment files, and how they are read back after a crash. Pure but for the bytes
handed in.

A record is ``DKS2``, u32 length, u64 *synced*, the frame's hash, u32 CRC-32 of these, then the frame's wire
form, for which the hash is the checksum: it is known when a frame is written, and costs nothing more.
Offsets count through the whole spool, so a segment file is named by the offset of its first byte. ``synced``
is how far the spool was known to be on disk when the record was written: a power cut may keep any part of
what was not synced, so a bad record is a torn tail unless a later good one says that its place had been
synced before; then it is damage. Zeros at the end of a segment are room made ready for records to come.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from blake3 import blake3

from diffkeeper.domain import errors, frames, limits, positions

MAGIC = b"DKS2"
_MAGIC_BEFORE = b"DKS1"
# magic, bytes of wire, synced, frame hash; then the CRC-32 of these
_HEAD = struct.Struct("<4sIQ32s")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Found:
    """A good record: where it starts in its segment, how long it is with its head, and what it holds."""

    at: int
    size: int
    position: positions.Position
    synced: int


def head(wire: bytes, digest: bytes, synced: int) -> bytes:
    """What stands before a wire form whose BLAKE3 digest is ``digest``."""
    packed = _HEAD.pack(MAGIC, len(wire), synced, digest)
    return packed + _CRC.pack(zlib.crc32(packed))


def wire_at(data: bytes | memoryview, at: int) -> tuple[memoryview, int] | None:
    """The wire form and ``synced`` of the record at ``at``; None when there is no whole good record."""
    record = _record_at(data, at)
    if record is None:
        return None
    wire, digest, synced = record
    return (wire, synced) if blake3(wire).digest() == digest else None


def frame_at(data: bytes | memoryview, at: int) -> frames.Frame | None:
    """The frame of the record at ``at``, of a place where one was written; None when it is not whole."""
    record = _record_at(data, at)
    if record is None:
        return None
    try:
        frame = frames.open_frame(bytes(record[0]))
    except errors.Corrupt:
        return None
    return frame if frame.hash == record[1] else None


def _record_at(data: bytes | memoryview, at: int) -> tuple[memoryview, bytes, int] | None:
    """Wire form, the digest it should have, and ``synced``."""
    view = memoryview(data)
    if len(view) - at < HEAD_BYTES:
        return None
    magic, length, synced, digest = _HEAD.unpack_from(view, at)
    if magic != MAGIC or _CRC.unpack_from(view, at + _HEAD.size)[0] != zlib.crc32(view[at : at + _HEAD.size]):
        return None
    start = at + HEAD_BYTES
    if length > limits.FRAME_MAX_BYTES or start + length > len(view):
        return None
    return view[start : start + length], digest, synced


def scan(data: bytes) -> tuple[list[Found], int]:
    """The good records from the start of a segment, and the offset at which they end. Raises Corrupt for an
    alien frame, or a spool of another version.
    """
    if data.startswith(_MAGIC_BEFORE):
        raise errors.Corrupt(
            f"the spool has the format {_MAGIC_BEFORE!r} and this agent reads {MAGIC!r}; it was left as it is",
            reason="unknown-format",
            hint="let the version that wrote it ship its frames before this one takes over",
        )
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


def is_room(data: bytes, at: int) -> bool:
    """Whether nothing was ever written from ``at`` on."""
    return data.count(0, at) == len(data) - at
