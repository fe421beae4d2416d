"""Reed-Solomon over pyeclib with ISA-L: a segment to the payloads of its shards, and any k of them back.

Cauchy matrices, because the Vandermonde ones of ISA-L are singular for some choices of k shards once m grows (its
``gf_gen_rs_matrix`` warns of it): with 2+8 nothing may depend on which two are left.

liberasurecode puts a header of its own, 80 bytes, before each fragment and believes what it reads there. Ours never
leave this module: they are cut off after encoding and made anew, from numbers that were checked, before decoding, so
that no byte of a stored shard is ever parsed by C code. Its own checks are not relied on: pyeclib 1.8.0 returned
wrong data for a flipped bit with them on. A decode is believed only when the segment's hash agrees.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from blake3 import blake3
from pyeclib.ec_iface import ECDriver, ECDriverError

from diffkeeper.domain import errors, segments, stripes

EC_TYPE = "isa_l_rs_cauchy"
# Fragment header of liberasurecode (erasurecode.h): index, size, metadata size, original size, …, CRC of the first 59.
_EC_HEAD = 80
_EC_META = 59
_EC_SIZES = struct.Struct("<IIIQ")
_EC_CRC_AT = 67
# Subsets of shards tried before a stripe whose shards contradict each other is given up.
MAX_TRIES = 4000


@lru_cache(maxsize=64)
def of(geometry: stripes.Geometry) -> Coder:
    return Coder(geometry)


class Coder:
    """For one geometry. Blocks; large segments belong into a thread."""

    def __init__(self, geometry: stripes.Geometry) -> None:
        self.geometry = geometry
        self._driver: ECDriver | None = None
        if geometry.parity:
            self._driver = ECDriver(k=geometry.data, m=geometry.parity, ec_type=EC_TYPE)
            self._heads = [fragment[:_EC_HEAD] for fragment in self._driver.encode(b"\0")]

    def encode(self, data: bytes) -> list[memoryview]:
        """The payload of each shard, in the order of their indexes."""
        size = self.geometry.payload_bytes(len(data))
        if self._driver is None:
            padded = memoryview(data.ljust(size * self.geometry.data, b"\0"))
            return [padded[index * size : (index + 1) * size] for index in range(self.geometry.data)]
        payloads = [memoryview(fragment)[_EC_HEAD:] for fragment in self._driver.encode(data)]
        assert all(len(payload) == size for payload in payloads), "liberasurecode cuts as payload_bytes says"
        return payloads

    def decode(self, payloads: Mapping[int, bytes | memoryview], size: int) -> bytes:
        """The ``size`` bytes that exactly k payloads stand for. They may be anything: ask the hash. Raises Corrupt."""
        length = self.geometry.payload_bytes(size)
        assert len(payloads) == self.geometry.data, "exactly as many as are needed"
        assert all(len(payload) == length for payload in payloads.values()), "lengths were checked"
        if all(index < self.geometry.data for index in payloads):
            return b"".join(payloads[index] for index in sorted(payloads))[:size]
        assert self._driver is not None, "without parity all indexes are data"
        fragments = [
            b"".join((self._head(index, length, size), part)) for index, part in sorted(payloads.items())
        ]
        try:
            return bytes(self._driver.decode(fragments))
        except ECDriverError as error:
            raise errors.Corrupt(
                f"{len(payloads)} shards could not be decoded ({error}); nothing of them was used",
                reason="undecodable",
                hint="other shards of the stripe are tried",
            ) from error

    def _head(self, index: int, length: int, size: int) -> bytes:
        head = bytearray(self._heads[index])
        _EC_SIZES.pack_into(head, 0, index, length, 0, size)
        struct.pack_into("<I", head, _EC_CRC_AT, zlib.crc32(head[:_EC_META]))
        return bytes(head)


# An index and its payload; several payloads may claim one index.
Claim = tuple[int, bytes | memoryview]


def decode_believed(
    geometry: stripes.Geometry, claims: Sequence[Claim], size: int, segment_hash: bytes
) -> tuple[bytes, list[int]]:
    """The segment that has this hash, from payloads of which some may be wrong; and which of ``claims`` are wrong.

    Each has passed its own digest, so a wrong one is a lie. Raises Corrupt (``too-few-shards`` or ``no-good-subset``)
    when no k of them give the segment.
    """
    have = len({index for index, _ in claims})
    if have < geometry.data:
        raise errors.Corrupt(
            f"{have} good shards are left of a segment that needs {geometry.data}; it cannot be read",
            reason="too-few-shards",
            hint="bring back a node that held one of them, or add its directory to dkctl rescue --from",
            have=have,
            need=geometry.data,
        )
    coder = of(geometry)
    for subset in itertools.islice(_subsets(claims, geometry.data), MAX_TRIES):
        data = coder.decode({claims[place][0]: claims[place][1] for place in subset}, size)
        if blake3(data).digest() == segment_hash:
            return data, [] if len(claims) == geometry.data else _liars(coder, data, claims)
    raise errors.Corrupt(
        f"no {geometry.data} of {len(claims)} shards give the segment {segments.name_of(segment_hash)}: "
        "each agrees with its own digest, and together they lie; nothing of them was used",
        reason="no-good-subset",
        hint="bring back more nodes that held it",
    )


def _subsets(claims: Sequence[Claim], count: int) -> Iterator[tuple[int, ...]]:
    """All choices of places with distinct indexes; first the stretches, of which a single liar cannot spoil all."""
    places = range(len(claims))
    around = [*places, *places]
    windows = [tuple(sorted(around[at : at + count])) for at in places]
    for subset in itertools.chain(dict.fromkeys(windows), itertools.combinations(places, count)):
        if len({claims[place][0] for place in subset}) == count:
            yield subset


def _liars(coder: Coder, data: bytes, claims: Sequence[Claim]) -> list[int]:
    true = coder.encode(data)
    return [place for place, (index, payload) in enumerate(claims) if true[index] != payload]
