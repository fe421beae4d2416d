"""A segment: a sealed run of the frames of one origin stream; the unit of erasure coding.

Wire: ``DKS1``, u32 header length, header (msgpack map), one u32 length a frame, the frames as they stood in the stream.
The same run always gives the same bytes; their BLAKE3 digest names the segment, so a decode is believed by
its name alone. Frames keep their places: frame i stands at stream sequence ``first_sequence + i``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import msgpack
from blake3 import blake3

from diffkeeper.domain import clocks, errors, frames, limits, positions, volumes

MAGIC = b"DKS1"
VERSION = 1
# A run is sealed when it has this many bytes; frames are at most 6 MiB, so a segment stays below its limit.
TARGET_BYTES = 8 * 1024 * 1024
MAX_FRAMES = 16_384
MAX_BYTES = 16 * 1024 * 1024
_PREFIX = struct.Struct("<4sI")
_HEADER_MAX_BYTES = 512


@dataclass(frozen=True, slots=True)
class Span:
    """Where a segment stands: in its stream, in the log of its volume, and in time."""

    volume: str
    origin: str
    first_sequence: int
    count: int
    first: positions.Position
    last: positions.Position
    first_us: int
    last_us: int

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.count - 1

    @property
    def stream(self) -> volumes.Origin:
        return volumes.Origin(self.volume, self.origin)

    def words(self) -> str:
        return f"{self.volume} from {self.origin}, positions {self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Segment:
    volume: str
    origin: str
    first_sequence: int
    wires: tuple[bytes, ...]

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + len(self.wires) - 1

    @property
    def sequences(self) -> range:
        """The places of the stream that it holds."""
        return range(self.first_sequence, self.first_sequence + len(self.wires))

    def wire(self, stream_sequence: int) -> bytes:
        """The frame at a place of the stream, which must be one of this segment's."""
        return self.wires[stream_sequence - self.first_sequence]

    def frames(self) -> Iterator[frames.Frame]:
        """Opened one by one; raises Corrupt for a frame that is not what a frame must be."""
        for wire in self.wires:
            yield frames.open_frame(wire)

    def span(self) -> Span:
        opened = [frames.read_header(self.wires[0]), frames.read_header(self.wires[-1])]
        return Span(
            self.volume,
            self.origin,
            self.first_sequence,
            len(self.wires),
            opened[0].position,
            opened[1].position,
            clocks.to_micros(opened[0].first),
            clocks.to_micros(opened[1].last),
        )


def name_of(digest: bytes) -> str:
    """The short name of a segment in subjects and logs: half of its hash."""
    return digest[:16].hex()


def encode(segment: Segment) -> bytes:
    head: bytes = msgpack.packb(
        {
            "v": VERSION,
            "vol": segment.volume,
            "org": segment.origin,
            "at": segment.first_sequence,
            "n": len(segment.wires),
        }
    )
    lengths = struct.pack(f"<{len(segment.wires)}I", *map(len, segment.wires))
    return b"".join((_PREFIX.pack(MAGIC, len(head)), head, lengths, *segment.wires))


def decode(data: bytes | memoryview, digest: bytes) -> Segment:
    """A segment from bytes that must have this digest; raises Corrupt for any others, and for what no sealer makes."""
    if len(data) > MAX_BYTES:
        raise _bad(f"{len(data)} bytes exceed the limit of {MAX_BYTES}")
    if blake3(data).digest() != digest:
        raise _bad("its bytes are not those of its hash")
    return decode_believed(data)


def decode_believed(data: bytes | memoryview) -> Segment:
    """The same for bytes whose hash was compared just now."""
    if len(data) > MAX_BYTES:
        raise _bad(f"{len(data)} bytes exceed the limit of {MAX_BYTES}")
    try:
        return _decode(data)
    except (ValueError, KeyError, TypeError, struct.error, msgpack.UnpackException) as error:
        raise _bad(repr(error)) from error
    except errors.Refused as error:
        raise _bad(error.message) from error


def _decode(data: bytes | memoryview) -> Segment:
    magic, head_bytes = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise errors.Corrupt(
            f"a segment has the format {magic!r} and this version reads {MAGIC!r}; it was left where it is",
            reason="unknown-format",
            hint="upgrade this service: a newer one sealed it",
        )
    at = _PREFIX.size + head_bytes
    if head_bytes > _HEADER_MAX_BYTES or at > len(data):
        raise ValueError("its header does not fit")
    fields: Any = msgpack.unpackb(
        memoryview(data)[_PREFIX.size : at],
        raw=False,
        max_map_len=8,
        max_array_len=0,
        max_str_len=64,
        max_bin_len=0,
        max_ext_len=0,
    )
    if fields["v"] != VERSION or len(fields) != 5:
        raise ValueError("its header is of another version")
    first, count = fields["at"], fields["n"]
    if type(first) is not int or type(count) is not int or first < 1 or not 1 <= count <= MAX_FRAMES:
        raise ValueError("its header makes no sense")
    volumes.check_name("volume", fields["vol"])
    volumes.check_name("site", fields["org"])
    lengths = struct.unpack_from(f"<{count}I", data, at)
    begin = at + 4 * count
    if begin + sum(lengths) != len(data) or max(lengths) > limits.FRAME_MAX_BYTES:
        raise ValueError("its lengths do not add up")
    ends = list(accumulate(lengths, initial=begin))
    view = memoryview(data)
    wires = tuple(bytes(view[start:end]) for start, end in pairwise(ends))
    return Segment(fields["vol"], fields["org"], first, wires)


def fits(count: int, size: int, following: int) -> bool:
    """Whether a frame of ``following`` bytes still belongs to a run of ``count`` frames and ``size`` bytes."""
    return count < MAX_FRAMES and (count == 0 or size + following <= TARGET_BYTES)


def continues(before: frames.Frame | None, frame: frames.Frame, origin: volumes.Origin) -> None:
    """Raise Corrupt when ``frame`` cannot stand after ``before`` in this stream.

    In a stream a frame continues the one before it, or begins a reign whose parent stands in another stream.
    """
    header = frame.header
    if (header.volume, header.origin) != (origin.volume, origin.site):
        raise errors.Corrupt(
            f"the stream {origin.stream} holds a frame of {header.volume} from {header.origin}; it was not sealed",
            reason="foreign-frame",
            hint=f"somebody else writes into {origin.subject}",
        )
    if before is None or header.position.epoch > before.position.epoch:
        return
    if header.parent != before.position or header.parent_hash != before.hash:
        raise errors.Corrupt(
            f"frame {header.position} of stream {origin.stream} does not continue {before.position}; it was not sealed",
            reason="broken-chain",
            hint="the stream was rolled back or altered: dkctl verify compares the sites",
        )


def _bad(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a segment is malformed: {why}; nothing of it was used",
        reason="malformed-segment",
        hint="it is decoded again from other shards",
    )
