"""Updates and states as bytes. What is read here is hostile: sizes first, then shapes, then meaning.

A message is one letter and msgpack: ``U`` plain (updates are small, and frames are compressed anyway), ``Z``
the same under zstd (states).
"""

from __future__ import annotations

from typing import Any, TypeGuard

import msgpack
import zstandard

from diffkeeper.domain import clocks, errors
from diffkeeper_replicator.merging import merger

FORMAT = 1
_PLAIN = b"U"
_COMPRESSED = b"Z"
_LEVEL = 3
SITE_MAX_CHARS = 255
SITES_MAX = 4096


def pack(message: list[Any], compressed: bool = False) -> bytes:
    data: bytes = msgpack.packb(message, use_bin_type=True)
    if not compressed:
        return _PLAIN + data
    return _COMPRESSED + zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def unpack(data: bytes) -> Any:
    """The message: tuples, text, bytes and numbers. Corrupt for anything else."""
    if len(data) > merger.UPDATE_MAX_BYTES:
        raise damaged(f"an update of {len(data)} bytes is over the limit of {merger.UPDATE_MAX_BYTES}")
    kind, body = data[:1], data[1:]
    if kind == _COMPRESSED:
        body = _decompressed(body)
    elif kind != _PLAIN:
        raise damaged("an update has no known form")
    try:
        return msgpack.unpackb(body, use_list=False, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise damaged("an update cannot be read") from error


def _decompressed(body: bytes) -> bytes:
    try:
        size = zstandard.get_frame_parameters(body).content_size
        # A frame that states no size is not ours: the compressor above always does.
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
            raise damaged("a state does not say its size")
        if size > merger.UPDATE_MAX_BYTES:
            raise damaged(f"a state of {size} bytes is over the limit of {merger.UPDATE_MAX_BYTES}")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size or 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise damaged("a state cannot be decompressed") from error


def damaged(message: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"{message}; the file was left as it is",
        reason="bad-update",
        hint="fetch the update again from its origin; if it stays, look at what that site runs",
    )


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise damaged(f"an update is malformed ({what})")


def is_stamp(value: object) -> TypeGuard[clocks.Stamp]:
    return type(value) is int and 0 < value <= clocks.STAMP_MAX


def is_site(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= SITE_MAX_CHARS


def vector(value: Any) -> dict[str, clocks.Stamp]:
    """Site to stamp, checked."""
    expect(isinstance(value, dict) and len(value) <= SITES_MAX, "vector")
    for site, stamp in value.items():
        if not (is_site(site) and is_stamp(stamp)):
            raise damaged("an update is malformed (vector)")
    return dict(value)
