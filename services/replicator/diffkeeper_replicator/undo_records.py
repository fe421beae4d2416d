"""What a run of frames will take away from a directory, as one value: enough to bring the directory back to the frame
before the run.

Pure. A record tells what *was*, not how to undo each delta: the node of every id whose names or attributes the run
touches, the old size and the old bytes of every range it touches, once each however often they are overwritten. So
doing it twice gives the same, and a position inside a run is reached by going back to its beginning and forward again.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zstandard
from blake3 import blake3

from diffkeeper.domain import errors, frames, positions, trees

# Old bytes kept of one run. A run that takes more away (a huge file cut short) cannot be gone back behind.
RECORD_MAX_BYTES = 64 * 1024 * 1024
# The decoded form: old bytes, and nodes and ranges around them.
_DECODED_MAX_BYTES = 4 * RECORD_MAX_BYTES
_MOST_ITEMS = 1 << 24
# Without entropy coding of the bytes themselves: of data that halves the same is left in a third of the time.
_LEVEL = -3
# Old bytes are compressed once there are so many: what was read is still in the processor's cache, and so is all that
# the compressor looks things up in.
_PIECE_BYTES = 128 * 1024
# So few parts are copied together for their checksum: each call costs as much as some kilobytes.
_FEW_PARTS = 2
_SIZES = struct.Struct(
    "<II"
)  # of the old bytes, before compression; how many pieces: their sizes follow, then they


@dataclass(frozen=True, slots=True)
class OldNode:
    """A node as it was; the same members as ``trees.Node`` without children."""

    kind: trees.Kind
    mode: int
    uid: int
    gid: int
    target: bytes
    entries: tuple[tuple[int, bytes], ...]


@dataclass(slots=True)
class OldFile:
    """Ranges of a file below its old size, by column. ``zeros`` is 1 where a range read as zeros: no bytes of it are
    kept.
    """

    file_id: int
    size: int
    mtime_ns: int
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    zeros: bytearray = field(default_factory=bytearray)

    def add(self, offset: int, length: int, *, zero: bool) -> None:
        self.offsets.append(offset)
        self.lengths.append(length)
        self.zeros.append(zero)


@dataclass(frozen=True, slots=True)
class Span:
    """Between which frames a record stands: it leads from ``after`` back to ``before``."""

    before: frames.Tip
    stamp: int  # of ``before``
    after: frames.Tip
    # Ids that lived before the run and whose last name it may take, with their inodes: such files are kept as graves.
    graves: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Record:
    span: Span
    next_id: int
    # Of ids that lived before the run.
    nodes: dict[int, OldNode] = field(default_factory=dict)
    # Ids that the run makes.
    born: list[int] = field(default_factory=list)
    # (id, name, value or None where there was none)
    xattrs: list[tuple[int, bytes, bytes | None]] = field(default_factory=list)
    files: list[OldFile] = field(default_factory=list)
    # Old bytes of the ranges that are not zero, in the order of ``files``. Only of a record that was read back: while
    # one is made they are packed at once (``OldBytes``).
    data: bytes = b""


def encode_span(span: Span) -> bytes:
    before, after = span.before, span.after
    packed: bytes = msgpack.packb(
        [
            [before.position.epoch, before.position.sequence, before.hash, span.stamp],
            [after.position.epoch, after.position.sequence, after.hash],
            span.graves,
        ]
    )
    return packed


def decode_span(packed: bytes) -> Span:
    """Raises Corrupt (``undo-damaged``) for anything that ``encode_span`` did not make."""
    try:
        (e0, s0, h0, stamp), (e1, s1, h1), graves = msgpack.unpackb(packed)
        return Span(
            frames.Tip(positions.Position(e0, s0), h0),
            stamp,
            frames.Tip(positions.Position(e1, s1), h1),
            tuple((file_id, inode) for file_id, inode in graves),
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise damaged(f"its span cannot be read ({error!r})") from error


class OldBytes:
    """The old bytes of one record while it is made. ``left`` is the room for more."""

    __slots__ = ("_data_bytes", "_held", "_held_bytes", "_packed", "_packer", "left")

    def __init__(self, packer: zstandard.ZstdCompressor) -> None:
        self._packer = packer
        self._held: list[bytes] = []
        self._held_bytes = self._data_bytes = 0
        self._packed: list[bytes] = []
        self.left = RECORD_MAX_BYTES

    def put(self, chunk: bytes) -> None:
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        if self._held_bytes >= _PIECE_BYTES:
            self._pack()

    def finish(self, record: Record) -> list[bytes]:
        """The payload of the record, in parts; its span is kept beside it."""
        data_bytes = self._data_bytes + self._held_bytes
        self._held.append(_fields(record))
        self._pack()
        sizes = array("I", map(len, self._packed))
        return [_SIZES.pack(data_bytes, len(sizes)) + sizes.tobytes(), *self._packed]

    def _pack(self) -> None:
        self._packed.append(self._packer.compress(b"".join(self._held)))
        self._data_bytes += self._held_bytes
        self._held_bytes = 0
        self._held.clear()


class Codec:
    """Payloads of records, with contexts that are used again: setting one up costs more than a small record."""

    def __init__(self) -> None:
        self._packer = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        self._unpacker = zstandard.ZstdDecompressor()

    def old_bytes(self) -> OldBytes:
        """For one record; one at a time."""
        return OldBytes(self._packer)

    def decode(self, span: Span, payload: bytes) -> Record:
        """Raises Corrupt (``undo-damaged``)."""
        try:
            data_bytes, count = _SIZES.unpack_from(payload)
            at = _SIZES.size + array("I").itemsize * count
            sizes = array("I", payload[_SIZES.size : at])
            if at + sum(sizes) != len(payload):
                raise damaged("its pieces do not add up to its size")
            whole = b"".join(self._unpacked(payload, at, sizes))
            fields = msgpack.unpackb(whole[data_bytes:], raw=False, max_array_len=_MOST_ITEMS)
            return _record(span, fields, whole[:data_bytes])
        except (
            ValueError,
            KeyError,
            TypeError,
            struct.error,
            zstandard.ZstdError,
            msgpack.UnpackException,
        ) as error:
            raise damaged(f"it cannot be read ({error!r})") from error

    def _unpacked(self, payload: bytes, at: int, sizes: Iterable[int]) -> Iterator[bytes]:
        room = _DECODED_MAX_BYTES
        for size in sizes:
            piece = payload[at : at + size]
            room -= int(zstandard.get_frame_parameters(piece).content_size)
            if room < 0:
                raise damaged("it is larger than any record")
            yield self._unpacker.decompress(piece, max_output_size=_DECODED_MAX_BYTES)
            at += size


def _fields(record: Record) -> bytes:
    packed: bytes = msgpack.packb(
        {
            "next": record.next_id,
            "nodes": [
                [file_id, int(n.kind), n.mode, n.uid, n.gid, n.target, n.entries]
                for file_id, n in record.nodes.items()
            ],
            "born": record.born,
            "xattrs": record.xattrs,
            "files": [
                [f.file_id, f.size, f.mtime_ns, f.offsets.tobytes(), f.lengths.tobytes(), bytes(f.zeros)]
                for f in record.files
            ],
        },
        use_bin_type=True,
    )
    return packed


def _record(span: Span, fields: dict[str, Any], data: bytes) -> Record:
    return Record(
        span,
        fields["next"],
        {
            file_id: OldNode(trees.Kind(kind), mode, uid, gid, target, tuple((p, n) for p, n in entries))
            for file_id, kind, mode, uid, gid, target, entries in fields["nodes"]
        },
        fields["born"],
        [(file_id, name, value) for file_id, name, value in fields["xattrs"]],
        [_file(*columns) for columns in fields["files"]],
        data,
    )


def _file(file_id: int, size: int, mtime_ns: int, offsets: bytes, lengths: bytes, zeros: bytes) -> OldFile:
    old = OldFile(file_id, size, mtime_ns, array("Q", offsets), array("Q", lengths), bytearray(zeros))
    if not len(old.offsets) == len(old.lengths) == len(old.zeros):
        raise ValueError("its columns differ in length")
    return old


def checksum(span: bytes, payload: Sequence[bytes]) -> bytes:
    """Of both, whatever parts the payload comes in."""
    if len(payload) <= _FEW_PARTS:
        return blake3(b"".join((span, *payload))).digest()
    hashed = blake3(span)
    for part in payload:
        hashed.update(part)
    return hashed.digest()


def damaged(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"an undo record is damaged: {why}; the directory was not changed by it",
        reason="undo-damaged",
        hint="the directory can be compared with the journal instead",
    )
