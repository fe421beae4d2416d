"""What a run of frames will take away from a directory, as one value: enough to bring the directory back to the frame
before the run.

Pure. A record tells what *was*, not how to undo each delta: the node of every id whose names or attributes the run
touches, the old size and the old bytes of every range it touches, once each however often they are overwritten. So
doing it twice gives the same, and a position inside a run is reached by going back to its beginning and forward again.
"""

from __future__ import annotations

import struct
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
_LENGTH = struct.Struct("<I")  # of the fields, before the old bytes


@dataclass(frozen=True, slots=True)
class OldNode:
    """A node as it was; the same members as ``trees.Node`` without children."""

    kind: trees.Kind
    mode: int
    uid: int
    gid: int
    target: bytes
    entries: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class OldRange:
    """A range of a file below its old size. ``zero``: it read as zeros, and no bytes of it are kept."""

    offset: int
    length: int
    zero: bool


@dataclass(frozen=True, slots=True)
class OldFile:
    file_id: int
    size: int
    mtime_ns: int
    ranges: tuple[OldRange, ...]


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
    # Old bytes of the ranges that are not zero, in the order of ``files``.
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


class Codec:
    """Payloads of records, with contexts that are used again: setting one up costs more than a small record."""

    def __init__(self) -> None:
        self._packer = zstandard.ZstdCompressor(level=1, write_content_size=True)
        self._unpacker = zstandard.ZstdDecompressor()

    def encode(self, record: Record) -> bytes:
        """The payload of a record; its span is kept beside it."""
        fields = msgpack.packb(
            {
                "next": record.next_id,
                "nodes": [
                    [file_id, int(n.kind), n.mode, n.uid, n.gid, n.target, n.entries]
                    for file_id, n in record.nodes.items()
                ],
                "born": record.born,
                "xattrs": record.xattrs,
                "files": [
                    [f.file_id, f.size, f.mtime_ns, [[r.offset, r.length, r.zero] for r in f.ranges]]
                    for f in record.files
                ],
            },
            use_bin_type=True,
        )
        return self._packer.compress(b"".join((_LENGTH.pack(len(fields)), fields, record.data)))

    def decode(self, span: Span, payload: bytes) -> Record:
        """Raises Corrupt (``undo-damaged``)."""
        try:
            if zstandard.get_frame_parameters(payload).content_size > _DECODED_MAX_BYTES:
                raise damaged("it is larger than any record")
            whole = self._unpacker.decompress(payload, max_output_size=_DECODED_MAX_BYTES)
            end = _LENGTH.size + _LENGTH.unpack_from(whole)[0]
            fields = msgpack.unpackb(whole[_LENGTH.size : end], raw=False, max_array_len=_MOST_ITEMS)
            return _record(span, fields, whole[end:])
        except (
            ValueError,
            KeyError,
            TypeError,
            struct.error,
            zstandard.ZstdError,
            msgpack.UnpackException,
        ) as error:
            raise damaged(f"it cannot be read ({error!r})") from error


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
        [
            OldFile(file_id, size, mtime_ns, tuple(OldRange(o, n, z) for o, n, z in ranges))
            for file_id, size, mtime_ns, ranges in fields["files"]
        ],
        data,
    )


def checksum(span: bytes, payload: bytes) -> bytes:
    return blake3(span).update(payload).digest()


def damaged(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"an undo record is damaged: {why}; the directory was not changed by it",
        reason="undo-damaged",
        hint="the directory can be compared with the journal instead",
    )
