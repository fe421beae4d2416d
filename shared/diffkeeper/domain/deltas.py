"""One captured change, and the columns in which a frame carries many of them.

Files are named by a volume-wide file id, given at first sight, never by path. A name is an entry
``(parent file id, name bytes)``; the root directory of the volume has the id ``ROOT_ID`` and no name.

``Delta`` is the value people read and tests write. ``Columns`` is the same run of deltas laid out by column:
a capture agent appends to it a hundred thousand times a second, and a replica reads it as plain lists.
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgpack

from diffkeeper.domain import errors, limits

ROOT_ID = 1
FIRST_FREE_ID = 2


class Op(enum.IntEnum):
    """Operations, with the meaning of ``offset``, ``length`` and ``args`` for each. Numbers are the wire
    format.
    """

    CREATE = 1  # a regular file: args (parent, name, mode, uid, gid)
    WRITE = 2  # data at offset; length == len(data)
    TRUNCATE = 3  # offset is the new size
    PUNCH = 4  # offset, length become zeros; the size stays
    RENAME = 5  # args (src_parent, src_name, dst_parent, dst_name, exchange); file_id is what src named
    UNLINK = 6  # args (parent, name)
    LINK = 7  # args (parent, name): one more name for file_id
    SYMLINK = 8  # args (parent, name, target, uid, gid)
    MKDIR = 9  # args (parent, name, mode, uid, gid)
    RMDIR = 10  # args (parent, name)
    ATTR = 11  # args (dict of mode, uid, gid, atime_ns, mtime_ns: those that changed)
    XATTR = 12  # args (name, value or None to remove)
    BARRIER = 13  # args (call, pid): the program asked for durability
    # args (cause, detail): what was captured here may be incomplete; offset, length: the range, if known
    GAP = 14
    MKFIFO = 15  # args (parent, name, mode, uid, gid)


# Operations that carry ``args``; the others are told by offset, length and data alone.
NAMING = frozenset({Op.CREATE, Op.RENAME, Op.UNLINK, Op.LINK, Op.SYMLINK, Op.MKDIR, Op.RMDIR, Op.MKFIFO})
WITH_ARGS = NAMING | {Op.ATTR, Op.XATTR, Op.BARRIER, Op.GAP}


@dataclass(frozen=True, slots=True)
class Delta:
    op: Op
    file_id: int
    offset: int = 0
    length: int = 0
    data: bytes = b""
    args: tuple[Any, ...] = ()
    # Microseconds after the frame's first stamp.
    at_us: int = 0


def write(file_id: int, offset: int, data: bytes, at_us: int = 0) -> Delta:
    return Delta(Op.WRITE, file_id, offset, len(data), data, (), at_us)


# Column widths: op u8, file id u64, offset u64, length u64, at_us u32 → 29 bytes a delta before compression.
# Of one operation, in the most wordy of them (RENAME and CREATE).
_MOST_ARGS = 5
# Of a text in arguments: a call's name, the cause and the detail of a gap.
TEXT_MAX_BYTES = 4096
# Ids above would overflow the column of the agent that counts on from them.
FILE_ID_MAX = (1 << 63) - 1

_HEAD = struct.Struct("<III")  # number of deltas, bytes of args, bytes of data
_BYTES_PER_DELTA = 1 + 8 + 8 + 8 + 4
_NO_ARGS = msgpack.packb([])
# What arguments count for besides the bytes in them.
_BYTES_OF_ARGS = 64


class Columns:
    """A growing run of deltas, by column. ``payload_bytes`` is what decides when a frame is full."""

    __slots__ = ("args", "at_us", "data", "file_ids", "lengths", "offsets", "ops", "payload_bytes")

    def __init__(self) -> None:
        self.ops = bytearray()
        self.file_ids = array("Q")
        self.offsets = array("Q")
        self.lengths = array("Q")
        self.at_us = array("I")
        self.args: list[Any] = []
        self.data = bytearray()
        self.payload_bytes = 0

    def __len__(self) -> int:
        return len(self.ops)

    def add_write(self, file_id: int, offset: int, data: bytes | memoryview, at_us: int) -> None:
        """A WRITE; the hot path, so nothing is checked here (``decode`` checks everything)."""
        size = len(data)
        self.ops.append(2)
        self.file_ids.append(file_id)
        self.offsets.append(offset)
        self.lengths.append(size)
        self.at_us.append(at_us)
        self.data += data
        self.payload_bytes += size + _BYTES_PER_DELTA

    def add_plain(
        self,
        ops: memoryview,
        file_ids: memoryview,
        offsets: memoryview,
        lengths: memoryview,
        at_us: memoryview,
        data: memoryview,
        args: list[list[str | int]],
    ) -> None:
        """Many WRITEs and BARRIERs: bytes of the five columns, in native order, the data of the writes, and the arguments
        of the barriers.
        """
        self.ops += ops
        self.file_ids.frombytes(file_ids)
        self.offsets.frombytes(offsets)
        self.lengths.frombytes(lengths)
        self.at_us.frombytes(at_us)
        self.data += data
        self.args += args
        self.payload_bytes += len(data) + len(ops) * _BYTES_PER_DELTA + len(args) * _BYTES_OF_ARGS

    def add(self, delta: Delta, at_us: int | None = None) -> None:
        """``at_us``: another time than the delta's."""
        op, at_us = delta.op, delta.at_us if at_us is None else at_us
        if op is Op.WRITE:
            assert delta.length == len(delta.data), "a write's length is that of its data"
            self.add_write(delta.file_id, delta.offset, delta.data, at_us)
            return
        self.ops.append(op)
        self.file_ids.append(delta.file_id)
        self.offsets.append(delta.offset)
        self.lengths.append(delta.length)
        self.at_us.append(at_us)
        self.payload_bytes += _BYTES_PER_DELTA
        if op in WITH_ARGS:
            packed = list(delta.args)
            self.args.append(packed)
            self.payload_bytes += _BYTES_OF_ARGS + sum(len(arg) for arg in packed if isinstance(arg, bytes))

    def __iter__(self) -> Iterator[Delta]:
        args = iter(self.args)
        data = memoryview(self.data)
        start = 0
        columns = zip(self.ops, self.file_ids, self.offsets, self.lengths, self.at_us, strict=True)
        for op_number, file_id, offset, length, at_us in columns:
            op = Op(op_number)
            chunk = b""
            if op is Op.WRITE:
                chunk = bytes(data[start : start + length])
                start += length
            yield Delta(
                op, file_id, offset, length, chunk, tuple(next(args)) if op in WITH_ARGS else (), at_us
            )

    def encode(self) -> bytes:
        """The body of a frame before compression; ``decode`` is its inverse."""
        args = msgpack.packb(self.args, use_bin_type=True)
        return b"".join(
            (
                _HEAD.pack(len(self.ops), len(args), len(self.data)),
                self.ops,
                self.file_ids.tobytes(),
                self.offsets.tobytes(),
                self.lengths.tobytes(),
                self.at_us.tobytes(),
                args,
                self.data,
            )
        )


def decode(body: bytes) -> Columns:
    """Columns from the bytes of a body, every bound checked; raises Corrupt for anything that is not well
    formed.
    """
    if len(body) > limits.FRAME_MAX_BODY_BYTES:
        raise _bad(f"{len(body)} bytes exceed the limit of {limits.FRAME_MAX_BODY_BYTES}")
    if len(body) < _HEAD.size:
        raise _bad("it is shorter than its head")
    count, args_bytes, data_bytes = _HEAD.unpack_from(body)
    if count > limits.FRAME_MAX_DELTAS:
        raise _bad(f"{count} deltas exceed the limit of {limits.FRAME_MAX_DELTAS}")
    if len(body) != _HEAD.size + count * _BYTES_PER_DELTA + args_bytes + data_bytes:
        raise _bad("its parts do not add up to its size")
    view = memoryview(body)
    columns = Columns()
    at = _HEAD.size
    columns.ops = bytearray(view[at : at + count])
    at += count
    for column in (columns.file_ids, columns.offsets, columns.lengths):
        column.frombytes(view[at : at + 8 * count])
        at += 8 * count
    columns.at_us.frombytes(view[at : at + 4 * count])
    at += 4 * count
    columns.args = _unpack_args(view[at : at + args_bytes])
    # A view of the body, and no copy: nothing is added to what was decoded.
    columns.data = cast(bytearray, view[at + args_bytes :])
    columns.payload_bytes = data_bytes + count * _BYTES_PER_DELTA
    _check(columns)
    return columns


def _unpack_args(packed: memoryview) -> list[Any]:
    """The list of argument lists, one at a time: six megabytes of nested empty lists would become half a
    gigabyte.
    """
    if packed == _NO_ARGS:
        return []  # as in nearly every frame
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=max(1, len(packed)),
        max_array_len=_MOST_ARGS,
        max_map_len=len(_ATTRS),
        max_bin_len=limits.XATTR_VALUE_MAX_BYTES,
        max_str_len=TEXT_MAX_BYTES,
        max_ext_len=0,
        list_hook=_flat_list,
        object_pairs_hook=_flat_map,
    )
    try:
        unpacker.feed(packed)
        count = unpacker.read_array_header()
        if count > limits.FRAME_MAX_DELTAS:
            raise ValueError(f"{count} of them")
        args = [unpacker.unpack() for _ in range(count)]
        if unpacker.tell() != len(packed):
            raise ValueError("bytes follow them")
    except (ValueError, msgpack.UnpackException) as error:
        raise _bad(f"its arguments cannot be read ({error!r})") from error
    return args


def _flat_list(items: list[Any]) -> list[Any]:
    if any(isinstance(item, list) for item in items):
        raise ValueError("a list in a list")
    return items


def _flat_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs) or any(isinstance(value, list | dict) for value in fields.values()):
        raise ValueError("a key stands twice, or a value is not plain")
    return fields


def _check(columns: Columns) -> None:
    """Bounds and shapes of decoded columns. The loop over plain writes is kept to a few operations each."""
    if not columns.args and _are_plain_writes(columns):
        return
    written = 0
    waiting = iter(columns.args)
    known = frozenset(Op)
    if columns.file_ids and max(columns.file_ids) > FILE_ID_MAX:
        raise _bad("a file id is out of bounds")
    for index, (op, offset, length) in enumerate(
        zip(columns.ops, columns.offsets, columns.lengths, strict=True)
    ):
        if op == Op.WRITE:
            written += length
            if length > limits.DELTA_MAX_DATA_BYTES or offset + length > limits.FILE_MAX_OFFSET:
                raise _bad(f"delta {index} writes out of bounds")
            continue
        if op not in known:
            raise errors.Corrupt(
                f"delta {index} has the unknown operation {op}; nothing of its frame was applied",
                reason="unknown-operation",
                hint="upgrade this replicator: a newer agent wrote this frame",
                operation=op,
            )
        if offset > limits.FILE_MAX_OFFSET or length > limits.FILE_MAX_OFFSET:
            raise _bad(f"delta {index} has a range out of bounds")
        if op in WITH_ARGS:
            args = next(waiting, None)
            if not isinstance(args, list) or not _ARGS_OK[op](args):
                raise _bad(f"delta {index} ({Op(op).name.lower()}) has malformed arguments")
    if written != len(columns.data):
        raise _bad("its writes do not cover its data")
    if next(waiting, None) is not None:
        raise _bad("it has more arguments than operations that take them")


def _are_plain_writes(columns: Columns) -> bool:
    """Whether all is well with columns that hold nothing but writes, asked a column at a time; False: look closer."""
    ops, lengths = columns.ops, columns.lengths
    return (
        len(ops) > 0
        and ops.count(Op.WRITE) == len(ops)
        and max(columns.file_ids) <= FILE_ID_MAX
        and max(lengths) <= limits.DELTA_MAX_DATA_BYTES
        and max(columns.offsets) <= limits.FILE_MAX_OFFSET - limits.DELTA_MAX_DATA_BYTES
        and sum(lengths) == len(columns.data)
    )


def is_name(value: Any) -> bool:
    """Whether ``value`` may be one component of a path: bytes, not empty, no ``/`` or NUL, not ``.`` or
    ``..``.
    """
    return (
        isinstance(value, bytes)
        and 0 < len(value) <= limits.NAME_MAX_BYTES
        and b"/" not in value
        and b"\0" not in value
        and value not in (b".", b"..")
    )


def _is_int(value: Any, most: int = (1 << 64) - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _entry(args: list[Any]) -> bool:
    return len(args) >= 2 and _is_int(args[0], FILE_ID_MAX) and is_name(args[1])


def _made(args: list[Any]) -> bool:
    return len(args) == 5 and _entry(args) and _is_int(args[2], 0o7777) and _ids(args[3:])


def _ids(args: list[Any]) -> bool:
    return all(_is_int(arg, (1 << 32) - 1) for arg in args)


_ATTRS = {
    "mode": 0o7777,
    "uid": (1 << 32) - 1,
    "gid": (1 << 32) - 1,
    "atime_ns": (1 << 64) - 1,
    "mtime_ns": (1 << 64) - 1,
}


def _attrs(args: list[Any]) -> bool:
    return (
        len(args) == 1
        and isinstance(args[0], dict)
        and all(key in _ATTRS and _is_int(value, _ATTRS[key]) for key, value in args[0].items())
    )


def _xattr(args: list[Any]) -> bool:
    if (
        len(args) != 2
        or not isinstance(args[0], bytes)
        or not 0 < len(args[0]) <= limits.XATTR_NAME_MAX_BYTES
    ):
        return False
    return args[1] is None or (isinstance(args[1], bytes) and len(args[1]) <= limits.XATTR_VALUE_MAX_BYTES)


def _symlink(args: list[Any]) -> bool:
    target = args[2] if len(args) == 5 else None
    return (
        isinstance(target, bytes)
        and _entry(args)
        and 0 < len(target) <= limits.SYMLINK_MAX_BYTES
        and b"\0" not in target
        and _ids(args[3:])
    )


def _rename(args: list[Any]) -> bool:
    return len(args) == 5 and _entry(args[:2]) and _entry(args[2:4]) and isinstance(args[4], bool)


# Keyed by number, because it is asked with a column's byte.
_ARGS_OK: dict[int, Callable[[list[Any]], bool]] = {
    Op.CREATE: _made,
    Op.MKDIR: _made,
    Op.MKFIFO: _made,
    Op.SYMLINK: _symlink,
    Op.RENAME: _rename,
    Op.UNLINK: lambda args: len(args) == 2 and _entry(args),
    Op.RMDIR: lambda args: len(args) == 2 and _entry(args),
    Op.LINK: lambda args: len(args) == 2 and _entry(args),
    Op.ATTR: _attrs,
    Op.XATTR: _xattr,
    Op.BARRIER: lambda args: len(args) == 2 and isinstance(args[0], str) and _is_int(args[1]),
    Op.GAP: lambda args: len(args) == 2 and isinstance(args[0], str) and isinstance(args[1], str),
}


def _bad(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a frame's body is malformed: {why}; nothing of it was applied",
        reason="malformed-body",
        hint="fetch the frame again from another holder",
    )
