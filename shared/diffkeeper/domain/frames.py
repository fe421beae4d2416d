"""A frame: an ordered run of deltas cut at one instant; the unit of publishing, hashing and signing.

Wire: 4 bytes ``DKF1``, u32 header length, header (msgpack map), body (columns, compressed). ``hash`` is the
BLAKE3 digest of all of it, and each header carries the hash of the frame before it, so a log can only be
extended, never edited. Positions go on across epochs; the first frame of an epoch names its parent in the
epoch before.

Reading is done in two steps, so that little is trusted early: ``open_frame`` checks sizes and reads the
header, ``columns`` decompresses and checks the body.
"""

from __future__ import annotations

import enum
import struct
import threading
from dataclasses import dataclass
from typing import Any

import msgpack
import zstandard
from blake3 import blake3

from diffkeeper.domain import clocks, deltas, errors, limits, positions

MAGIC = b"DKF1"
_PREFIX = struct.Struct("<4sI")
VERSION = 1
NO_HASH = bytes(32)


class Fidelity(enum.IntEnum):
    """How exactly a frame's deltas stand for what the program did, best first. A frame has its worst
    delta's.
    """

    EXACT = 0  # each write as it happened
    PAGE = 1  # some ranges re-read after the fact
    SCAN = 2  # found by comparing files with what was known


class Codec(enum.IntEnum):
    PLAIN = 0
    ZSTD = 1


class Flag(enum.IntFlag):
    BARRIER = 1  # ends with a point where the program asked for durability
    BASE = 2  # part of the first-sight scan
    BASE_END = 4  # the scan is complete: from here on the volume can be promoted
    HANDOVER = 8  # the last frame of its epoch; ``successor`` names the site that goes on
    FENCE = 16  # put into a dead leader's stream so that its writer's next expected sequence is wrong
    GAP = 32  # holds at least one GAP delta


NO_FLAGS = Flag(0)


@dataclass(frozen=True, slots=True)
class Header:
    volume: str
    origin: str
    position: positions.Position
    # Invariant: parent.sequence == position.sequence - 1; parent.epoch < position.epoch only in an epoch's
    # first frame.
    parent: positions.Position
    parent_hash: bytes
    first: clocks.Stamp
    last: clocks.Stamp
    count: int  # deltas
    body_bytes: int  # before compression
    flags: Flag = NO_FLAGS
    fidelity: Fidelity = Fidelity.EXACT
    codec: Codec = Codec.ZSTD
    key_id: str = ""
    successor: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    header: Header
    hash: bytes
    wire: bytes
    body_at: int  # index into ``wire``

    @property
    def position(self) -> positions.Position:
        return self.header.position

    @property
    def message_id(self) -> str:
        """For ``Nats-Msg-Id``: holds the hash because brokers never compare the payloads of duplicates."""
        header = self.header
        return f"{header.volume}:{header.origin}:{header.position.epoch}:{header.position.sequence}:{self.hash.hex()}"

    def columns(self) -> deltas.Columns:
        """The deltas, decompressed and checked; raises Corrupt, and takes no memory beyond the limits."""
        return deltas.decode(_body(self))


class Compressor:
    """zstd with one context that is used again: setting one up costs more than a small frame."""

    def __init__(self, level: int = 1) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True)

    def compress(self, body: bytes) -> tuple[Codec, bytes]:
        """The smaller of the two encodings."""
        packed = self._zstd.compress(body)
        return (Codec.ZSTD, packed) if len(packed) < len(body) else (Codec.PLAIN, body)


@dataclass(frozen=True, slots=True)
class Packed:
    """The body of a frame to be: encoded and compressed, which needs nothing of the frame before it."""

    codec: Codec
    body: bytes
    count: int  # deltas
    body_bytes: int  # before compression


def pack(columns: deltas.Columns, compressor: Compressor) -> Packed:
    """The costly half of sealing; may run in a thread of its own. The caller cuts early: see
    ``FRAME_TARGET_BYTES``.
    """
    body = columns.encode()
    assert len(body) <= limits.FRAME_MAX_BODY_BYTES, "a frame must be cut before it outgrows its limit"
    codec, packed = compressor.compress(body)
    return Packed(codec, packed, len(columns), len(body))


def seal(
    packed: Packed,
    *,
    volume: str,
    origin: str,
    position: positions.Position,
    parent: positions.Position,
    parent_hash: bytes,
    first: clocks.Stamp,
    last: clocks.Stamp,
    flags: Flag = NO_FLAGS,
    fidelity: Fidelity = Fidelity.EXACT,
    successor: str = "",
) -> Frame:
    """A packed body as a frame that can be published: header, place in the chain, hash."""
    header = Header(
        volume,
        origin,
        position,
        parent,
        parent_hash,
        first,
        last,
        packed.count,
        packed.body_bytes,
        flags,
        fidelity,
        packed.codec,
        "",
        successor,
    )
    head = msgpack.packb(_to_map(header), use_bin_type=True)
    wire = b"".join((_PREFIX.pack(MAGIC, len(head)), head, packed.body))
    return Frame(header, blake3(wire).digest(), wire, _PREFIX.size + len(head))


def open_frame(wire: bytes) -> Frame:
    """A frame from bytes that nobody vouches for: sizes first, then the header. The body is not touched."""
    header, body_at = _split(wire)
    return Frame(header, blake3(wire).digest(), wire, body_at)


def read_header(wire: bytes) -> Header:
    """The header alone, of a frame whose hash nobody asks for; raises Corrupt as ``open_frame`` does."""
    return _split(wire)[0]


def _split(wire: bytes) -> tuple[Header, int]:
    if len(wire) > limits.FRAME_MAX_BYTES:
        raise _bad(f"{len(wire)} bytes exceed the limit of {limits.FRAME_MAX_BYTES}")
    if len(wire) < _PREFIX.size:
        raise _bad("it is shorter than its prefix")
    magic, head_bytes = _PREFIX.unpack_from(wire)
    if magic[:3] != MAGIC[:3]:
        raise _bad("it does not begin with DKF")
    if magic != MAGIC:
        raise errors.Corrupt(
            f"a frame has the format {magic!r} and this version reads {MAGIC!r}; it was left where it is",
            reason="unknown-format",
            hint="upgrade this service: a newer agent wrote this frame",
        )
    if head_bytes > limits.HEADER_MAX_BYTES or _PREFIX.size + head_bytes > len(wire):
        raise _bad("its header does not fit")
    body_at = _PREFIX.size + head_bytes
    try:
        fields = msgpack.unpackb(
            memoryview(wire)[_PREFIX.size : body_at],
            raw=False,
            strict_map_key=True,
            max_map_len=32,
            max_array_len=0,
            max_str_len=255,
            max_bin_len=64,
            max_ext_len=0,
            object_pairs_hook=_no_duplicates,
        )
        header = _from_map(fields)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise _bad(f"its header cannot be read ({error!r})") from error
    return header, body_at


@dataclass(frozen=True, slots=True)
class Tip:
    """The last frame of a log that is known good: what the next one must continue."""

    position: positions.Position
    hash: bytes


ORIGIN_TIP = Tip(positions.START, NO_HASH)


class Follows(enum.Enum):
    """How a frame stands to a tip."""

    NEXT = "next"
    DUPLICATE = "duplicate"  # at the tip, or before it in the tip's epoch
    GAP = "gap"  # frames between are missing
    FORK = "fork"  # claims the tip's place, or the tip as its parent, with another hash
    STALE = "stale"  # of an epoch that has ended


def follows(tip: Tip, frame: Frame) -> Follows:
    """Where ``frame`` stands to ``tip``. Pure; what to do about it is the caller's."""
    header = frame.header
    if header.position.epoch < tip.position.epoch:
        return Follows.STALE
    if header.position == tip.position:
        return Follows.DUPLICATE if frame.hash == tip.hash else Follows.FORK
    if header.position < tip.position:
        return Follows.DUPLICATE
    if header.parent == tip.position:
        return Follows.NEXT if header.parent_hash == tip.hash else Follows.FORK
    if header.parent < tip.position:
        return Follows.FORK
    return Follows.GAP


def _to_map(header: Header) -> dict[str, Any]:
    return {
        "v": VERSION,
        "vol": header.volume,
        "org": header.origin,
        "ep": header.position.epoch,
        "seq": header.position.sequence,
        "pep": header.parent.epoch,
        "par": header.parent_hash,
        "h0": header.first,
        "h1": header.last,
        "n": header.count,
        "sz": header.body_bytes,
        "fl": int(header.flags),
        "fid": int(header.fidelity),
        "cod": int(header.codec),
        "key": header.key_id,
        "to": header.successor,
    }


_KNOWN = frozenset(
    {"v", "vol", "org", "ep", "seq", "pep", "par", "h0", "h1", "n", "sz", "fl", "fid", "cod", "key", "to"}
)


# An IntFlag keeps bits it does not know, so they are asked for one by one.
_ALL_FLAGS = sum(Flag)
# Looked up, because making one takes as long as the rest of a header.
_FLAGS = {number: Flag(number) for number in range(_ALL_FLAGS + 1)}


def _from_map(fields: Any) -> Header:
    if not isinstance(fields, dict):
        raise ValueError("not a map")
    if fields["v"] != VERSION or not fields.keys() <= _KNOWN:
        raise errors.Corrupt(
            f"a frame's header has version {fields['v']} and this service reads {VERSION}; it was left where it is",
            reason="unknown-version",
            hint="upgrade this service: a newer agent wrote this frame",
        )
    numbers = [fields[key] for key in ("ep", "seq", "pep", "h0", "h1", "n", "sz", "fl", "fid", "cod")]
    if any(not isinstance(number, int) or isinstance(number, bool) or number < 0 for number in numbers):
        raise ValueError("a number is missing or negative")
    words = [fields[key] for key in ("vol", "org", "key", "to")]
    if any(not isinstance(word, str) for word in words) or not isinstance(fields["par"], bytes):
        raise ValueError("a text is missing")
    if (
        len(fields["par"]) != len(NO_HASH)
        or fields["seq"] < 1
        or fields["ep"] < 1
        or fields["pep"] > fields["ep"]
    ):
        raise ValueError("its place in the log makes no sense")
    if fields["sz"] > limits.FRAME_MAX_BODY_BYTES or fields["n"] > limits.FRAME_MAX_DELTAS:
        raise ValueError("it announces more than the limits allow")
    if fields["h0"] > fields["h1"] or fields["h1"] > clocks.STAMP_MAX:
        raise ValueError("its stamps make no sense")
    if fields["fl"] & ~_ALL_FLAGS:
        raise errors.Corrupt(
            f"a frame's header has unknown flags ({fields['fl']:#x}); it was left where it is",
            reason="unknown-flag",
            hint="upgrade this service: a newer agent wrote this frame",
        )
    return Header(
        fields["vol"],
        fields["org"],
        positions.Position(fields["ep"], fields["seq"]),
        positions.Position(fields["pep"], fields["seq"] - 1),
        fields["par"],
        fields["h0"],
        fields["h1"],
        fields["n"],
        fields["sz"],
        _FLAGS[fields["fl"]],
        Fidelity(fields["fid"]),
        Codec(fields["cod"]),
        fields["key"],
        fields["to"],
    )


def _body(frame: Frame) -> bytes:
    packed = memoryview(frame.wire)[frame.body_at :]
    announced = frame.header.body_bytes
    if frame.header.codec is Codec.PLAIN:
        body = bytes(packed)
    else:
        # A zstd frame that states its size makes the decompressor ignore its output limit, so ask before
        # decompressing.
        try:
            stated = zstandard.get_frame_parameters(packed).content_size
            if stated != announced:
                raise _bad(f"its body states {stated} bytes and its header {announced}")
            body = _unpacker().decompress(packed, max_output_size=announced, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise _bad(f"its body cannot be decompressed ({error})") from error
    if len(body) != announced:
        raise _bad(f"its body has {len(body)} bytes and its header says {announced}")
    return body


_OF_THREAD = threading.local()


def _unpacker() -> zstandard.ZstdDecompressor:
    """One a thread, used again: setting one up costs more than a small frame."""
    try:
        unpacker: zstandard.ZstdDecompressor = _OF_THREAD.unpacker
    except AttributeError:
        unpacker = _OF_THREAD.unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    return unpacker


def _no_duplicates(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _bad(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a frame is malformed: {why}; it was not accepted",
        reason="malformed-frame",
        hint="fetch the frame again from another holder",
    )
