"""Changes to a directory by path: what travels when a moment is restored, rolled back to or replayed.

A stream is a run of records, each a 32-bit length and a msgpack list that begins with its word:

    head    facts            what the stream is: volume, position, how much
    mkdir   path             create path             fifo path          symlink path, target
    link    old, new         rename old, new, swap   unlink path        rmdir path
    write   path, offset, data                       truncate path, size
    punch   path, offset, length
    sparse  path, key, size, runs                    a file without its content: runs are pairs of 64-bit start, end
    owner   path, mode, uid, gid                     times path, atime ns or None, mtime ns or None
    xattr   path, name, value or None
    digest  path, BLAKE3     the content of this file is complete and hashes so
    at      position, unix us                        what follows happened then
    fail    error            the stream ends here, and this is why
    end     facts            the stream is whole

Whoever reads one trusts nothing of it: lengths, shapes and every name are checked here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Protocol

import msgpack

from diffkeeper.domain import deltas, errors, limits

Change = tuple[Any, ...]

DATA_MAX_BYTES = 1024 * 1024
_RECORD_MAX_BYTES = DATA_MAX_BYTES + 64 * 1024
_LENGTH = struct.Struct("<I")
# A path has as many names as a tree may be deep.
PATH_MAX_NAMES = 4096
CONTENT_TYPE = "application/x-diffkeeper-changes"

_PATH, _BYTES, _INT, _BOOL, _MAP, _TEXT = "path", "bytes", "int", "bool", "map", "text"
_SHAPES: dict[str, tuple[str, ...]] = {
    "head": (_MAP,),
    "mkdir": (_PATH,),
    "create": (_PATH,),
    "fifo": (_PATH,),
    "symlink": (_PATH, _BYTES),
    "link": (_PATH, _PATH),
    "rename": (_PATH, _PATH, _BOOL),
    "unlink": (_PATH,),
    "rmdir": (_PATH,),
    "write": (_PATH, _INT, _BYTES),
    "truncate": (_PATH, _INT),
    "punch": (_PATH, _INT, _INT),
    "sparse": (_PATH, _INT, _INT, _BYTES),
    "owner": ("root", _INT, _INT, _INT),
    "times": ("root", "int?", "int?"),
    "xattr": ("root", _BYTES, "bytes?"),
    "digest": (_PATH, _BYTES),
    "at": (_TEXT, _INT),
    "fail": (_MAP,),
    "end": (_MAP,),
}


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def encode(change: Change) -> bytes:
    packed: bytes = msgpack.packb(change, use_bin_type=True)
    return _LENGTH.pack(len(packed)) + packed


def read(source: Readable) -> Iterator[Change]:
    """The records of a stream up to its end. Raises what it failed with, or Corrupt for anything but a whole,
    well-formed stream.
    """
    while True:
        change = _read_one(source)
        if change[0] == "fail":
            raise errors.from_dict(change[1])
        yield change
        if change[0] == "end":
            return


def _read_one(source: Readable) -> Change:
    (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    if length > _RECORD_MAX_BYTES:
        raise _bad(f"a record of {length} bytes")
    try:
        fields = msgpack.unpackb(_exactly(source, length), raw=False, max_array_len=256, max_map_len=64)
    except (ValueError, msgpack.UnpackException) as error:
        raise _bad(repr(error)) from error
    if not isinstance(fields, list) or not fields or not isinstance(fields[0], str):
        raise _bad("a record that is none")
    shape = _SHAPES.get(fields[0])
    if shape is None:
        raise _bad(f"the unknown record {fields[0]!r}")
    if len(shape) != len(fields) - 1 or not all(map(_fits, shape, fields[1:])):
        raise _bad(f"a malformed {fields[0]}")
    return tuple(fields)


def _exactly(source: Readable, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise errors.Transient(
                "the stream broke off before its end; what has come is kept",
                reason="stream-broken",
                hint="the same command again goes on from there",
            )
        data += more
    return data


def is_path(value: Any) -> bool:
    """Whether ``value`` is a path below a root: names that may be names, and nothing else."""
    if not isinstance(value, bytes) or not value:
        return False
    names = value.split(b"/")
    return len(names) <= PATH_MAX_NAMES and all(map(deltas.is_name, names))


def _fits(kind: str, value: Any) -> bool:
    if kind.endswith("?"):
        return value is None or _fits(kind[:-1], value)
    match kind:
        case "path":
            return is_path(value)
        case "root":
            return value == b"" or is_path(value)
        case "bytes":
            return isinstance(value, bytes) and len(value) <= DATA_MAX_BYTES
        case "int":
            return (
                isinstance(value, int)
                and not isinstance(value, bool)
                and 0 <= value <= limits.FILE_MAX_OFFSET
            )
        case "bool":
            return isinstance(value, bool)
        case "text":
            return isinstance(value, str)
        case _:
            return isinstance(value, dict)


def _bad(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a stream of changes holds {why}; nothing of that record was done", reason="malformed-stream"
    )
