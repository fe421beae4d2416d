"""The manifest of a stripe: the mark that its shards were written and read back, where they are, and what each must be.

A copy stands on every node of the stripe. It is an index, never needed to restore: shards describe themselves. What
it adds is the knowledge that a stripe exists when too few of its shards are left, and the digest of every
shard, against which a shard that is whole but of wrong content is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
from blake3 import blake3

from diffkeeper.domain import errors, positions, segments, shard_headers, stripes, volumes

MAGIC = b"DKM1"
MAX_BYTES = 8192
_DIGEST_BYTES = 32
_HEAD = len(MAGIC) + _DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Manifest:
    geometry: stripes.Geometry
    epoch: int
    segment_hash: bytes
    segment_bytes: int
    span: segments.Span
    digests: tuple[bytes, ...]  # of each shard's payload, by index
    # Where each index was proven to stand; an index that is not here still has to be written.
    placed: Mapping[int, str]
    sealed_us: int

    @property
    def name(self) -> str:
        return segments.name_of(self.segment_hash)

    @property
    def stripe(self) -> shard_headers.Stripe:
        return shard_headers.Stripe(self.span.volume, self.name, self.geometry)

    @property
    def key(self) -> shard_headers.Key:
        return shard_headers.Key(self.stripe, self.epoch, shard_headers.MANIFEST)

    def header(self, index: int) -> shard_headers.Header:
        return shard_headers.Header(
            self.geometry,
            index,
            self.epoch,
            self.segment_hash,
            self.segment_bytes,
            self.digests[index],
            self.span,
        )


def encode(manifest: Manifest) -> bytes:
    span = manifest.span
    packed: bytes = msgpack.packb(
        [
            manifest.geometry.data,
            manifest.geometry.parity,
            manifest.epoch,
            manifest.segment_hash,
            manifest.segment_bytes,
            span.volume,
            span.origin,
            span.first_sequence,
            span.count,
            [span.first.epoch, span.first.sequence, span.last.epoch, span.last.sequence],
            [span.first_us, span.last_us],
            list(manifest.digests),
            [[index, node] for index, node in sorted(manifest.placed.items())],
            manifest.sealed_us,
        ]
    )
    data = MAGIC + blake3(packed).digest() + packed
    assert len(data) <= MAX_BYTES, "a manifest of the most shards stays within its limit"
    return data


def decode(data: bytes) -> Manifest:
    """A manifest from bytes nobody vouches for; raises Corrupt."""
    if len(data) > MAX_BYTES or len(data) < _HEAD or data[: len(MAGIC)] != MAGIC:
        raise _bad("its size or its beginning is wrong")
    packed = data[_HEAD:]
    if blake3(packed).digest() != data[len(MAGIC) : _HEAD]:
        raise _bad("its bytes are not those of its digest")
    try:
        return _read(
            msgpack.unpackb(
                packed,
                raw=False,
                max_map_len=0,
                max_array_len=stripes.MAX_SHARDS,
                max_str_len=64,
                max_bin_len=32,
                max_ext_len=0,
            )
        )
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise _bad(repr(error)) from error
    except errors.Refused as error:
        raise _bad(error.message) from error


def _read(fields: Any) -> Manifest:
    (
        data,
        parity,
        epoch,
        segment_hash,
        size,
        volume,
        origin,
        sequence,
        count,
        places,
        times,
        digests,
        placed,
        sealed,
    ) = fields
    numbers = [data, parity, epoch, size, sequence, count, *places, *times, sealed]
    if (
        any(type(number) is not int or number < 0 for number in numbers)
        or len(places) != 4
        or len(times) != 2
    ):
        raise ValueError("a number is missing or negative")
    geometry = stripes.Geometry(data, parity)
    hashes = [segment_hash, *digests]
    if len(digests) != geometry.shards or any(type(one) is not bytes or len(one) != 32 for one in hashes):
        raise ValueError("a digest is missing")
    if (
        epoch > shard_headers.EPOCH_MAX
        or not 0 < size <= segments.MAX_BYTES
        or not 0 < count <= segments.MAX_FRAMES
        or sequence < 1
    ):
        raise ValueError("it announces what no service makes")
    where = {index: volumes.check_name("storage node", node) for index, node in placed}
    if any(type(index) is not int or not 0 <= index < geometry.shards for index in where):
        raise ValueError("it places what is no shard of it")
    span = segments.Span(
        volumes.check_name("volume", volume),
        volumes.check_name("site", origin),
        sequence,
        count,
        positions.Position(places[0], places[1]),
        positions.Position(places[2], places[3]),
        times[0],
        times[1],
    )
    return Manifest(geometry, epoch, segment_hash, size, span, tuple(digests), where, sealed)


def _bad(why: str) -> errors.Corrupt:
    return errors.Corrupt(
        f"a manifest is damaged: {why}; it was not used",
        reason="damaged-manifest",
        hint="it is written anew from the other nodes, or from the shards",
    )
