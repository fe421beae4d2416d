"""A confirmation on the wire: a small msgpack map, read with strict limits because senders are
not authenticated.
"""

from __future__ import annotations

from typing import Any

import msgpack

from diffkeeper.domain import errors, positions
from diffkeeper.log import event_log

_VERSION = 1
_MAX_BYTES = 512


def encode(confirmation: event_log.Confirmation) -> bytes:
    packed: bytes = msgpack.packb(
        {
            "v": _VERSION,
            "site": confirmation.site,
            "pos": [confirmation.position.epoch, confirmation.position.sequence],
            "hash": confirmation.frame_hash,
            "app": [confirmation.applied.epoch, confirmation.applied.sequence],
            "at": confirmation.at_us,
        },
        use_bin_type=True,
    )
    return packed


def decode(data: bytes) -> event_log.Confirmation:
    """Raises Corrupt for anything that is not a confirmation of this version."""
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{len(data)} bytes")
        fields = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_map_len=8,
            max_array_len=2,
            max_str_len=64,
            max_bin_len=32,
            max_ext_len=0,
        )
        return _from_map(fields)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise errors.Corrupt(
            f"a confirmation cannot be read ({error!r}); it was ignored",
            reason="malformed-confirmation",
            hint="look for an unknown sender on the confirm subject",
        ) from error


def _from_map(fields: Any) -> event_log.Confirmation:
    if not isinstance(fields, dict) or fields["v"] != _VERSION:
        raise ValueError("not a map of this version")
    site, frame_hash, at_us = fields["site"], fields["hash"], fields["at"]
    if not isinstance(site, str) or not isinstance(frame_hash, bytes) or len(frame_hash) != 32:
        raise ValueError("a text or hash is missing")
    position, applied = _position(fields["pos"]), _position(fields["app"])
    if not _is_count(at_us) or applied > position:
        raise ValueError("its numbers make no sense")
    return event_log.Confirmation(site, position, frame_hash, applied, at_us)


def _position(value: Any) -> positions.Position:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_count(part) for part in value):
        raise ValueError("not a position")
    return positions.Position(*value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
