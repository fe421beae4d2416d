"""A lease on the wire: a small JSON object, so that ``nats kv get`` shows it, read strictly because a store is not us."""

from __future__ import annotations

import json
from typing import Any

from diffkeeper.domain import errors, leases, volumes

_VERSION = 1
_MAX_BYTES = 1024
_NUMBERS = ("epoch", "ttl_ms", "beat")


def encode(lease: leases.Lease) -> bytes:
    fields = {"v": _VERSION, "volume": lease.volume, "epoch": lease.epoch, "site": lease.site}
    return json.dumps({**fields, "ttl_ms": lease.ttl_ms, "beat": lease.beat}).encode()


def decode(data: bytes) -> leases.Lease:
    """Raises Corrupt for anything that is not a lease of this version."""
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{len(data)} bytes")
        return _from_map(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError, errors.Refused) as error:
        raise errors.Corrupt(
            f"a lease cannot be read ({error!r}); nobody takes it over",
            reason="malformed-lease",
            hint="another program, or another version, wrote it: look at it with nats kv get",
        ) from error


def _from_map(fields: Any) -> leases.Lease:
    if not isinstance(fields, dict) or fields["v"] != _VERSION:
        raise ValueError("not a lease of this version")
    volume, site = fields["volume"], fields["site"]
    if not isinstance(volume, str) or not isinstance(site, str):
        raise ValueError("a name is missing")
    numbers = [fields[key] for key in _NUMBERS]
    if not all(
        isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers
    ):
        raise ValueError("a number is missing")
    epoch, ttl_ms, beat = numbers
    leases.check_ttl(ttl_ms)
    return leases.Lease(
        volumes.check_name("volume", volume), epoch, volumes.check_name("site", site), ttl_ms, beat
    )
