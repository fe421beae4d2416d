"""Reed-Solomon with ISA-L: a segment to the payloads of its shards, and any k of them back.

Cauchy matrices, because the Vandermonde ones of ISA-L are singular for some choices of k shards once m grows (its
``gf_gen_rs_matrix`` warns of it): with 2+8 nothing may depend on which two are left. What is decoded is believed only
when the segment's hash agrees.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from blake3 import blake3

from diffkeeper.domain import errors, segments, stripes
from diffkeeper_repair import isal, liberasurecode

# Subsets of shards tried before a stripe whose shards contradict each other is given up.
MAX_TRIES = 4000


@lru_cache(maxsize=64)
def of(geometry: stripes.Geometry) -> Coder:
    return Coder(geometry)


class Coder:
    """For one geometry. Blocks; large segments belong into a thread."""

    def __init__(self, geometry: stripes.Geometry) -> None:
        self.geometry = geometry
        self._matrix: isal.Matrix | None = None
        self._slow: liberasurecode.Liberasurecode | None = None
        if geometry.parity and isal.library() is not None:
            self._matrix = isal.Matrix(geometry.data, geometry.parity)
        elif geometry.parity:
            self._slow = liberasurecode.Liberasurecode(geometry)

    def encode(self, data: bytes | memoryview) -> Sequence[memoryview]:
        """The payload of each shard, in the order of their indexes; those of data are views of ``data``."""
        payloads = self.encode_some(data, range(self.geometry.shards))
        return [payloads[index] for index in range(self.geometry.shards)]

    def encode_some(self, data: bytes | memoryview, indexes: Collection[int]) -> dict[int, memoryview]:
        """The payloads of these shards alone."""
        if self._slow is not None:
            every = self._slow.encode(data)
            return {index: every[index] for index in indexes}
        rows = self._rows(data)
        wanted = {index: rows[index].data for index in indexes if index < self.geometry.data}
        parity = sorted(index for index in indexes if index >= self.geometry.data)
        if parity:
            assert self._matrix is not None, "without parity all indexes are data"
            made = self._matrix.encode(rows, [index - self.geometry.data for index in parity])
            wanted.update((index, row.data) for index, row in zip(parity, made, strict=True))
        return wanted

    def _rows(self, data: bytes | memoryview) -> list[isal.Bytes]:
        """Views of the data shards; one that the data does not fill is a copy with zeros behind."""
        size = self.geometry.payload_bytes(len(data))
        whole = np.frombuffer(data, np.uint8)
        rows = [whole[at * size : (at + 1) * size] for at in range(self.geometry.data)]
        for place, row in enumerate(rows):
            if len(row) < size:
                rows[place] = np.zeros(size, np.uint8)
                rows[place][: len(row)] = row
        return rows

    def decode(self, payloads: Mapping[int, bytes | memoryview], size: int) -> memoryview:
        """The ``size`` bytes that exactly k payloads stand for. They may be anything: ask the hash. Raises Corrupt."""
        length = self.geometry.payload_bytes(size)
        assert len(payloads) == self.geometry.data, "exactly as many as are needed"
        assert all(len(payload) == length for payload in payloads.values()), "lengths were checked"
        missing = [index for index in range(self.geometry.data) if index not in payloads]
        if missing and self._slow is not None:
            return self._slow.decode(payloads, size)
        made = np.empty((self.geometry.data, length), np.uint8)
        given = {index: np.frombuffer(payload, np.uint8) for index, payload in payloads.items()}
        for index in given.keys() - set(range(self.geometry.data, self.geometry.shards)):
            made[index] = given[index]
        if missing:
            assert self._matrix is not None, "without parity all indexes are data"
            self._matrix.decode(given, {index: made[index] for index in missing})
        return made.reshape(-1).data[:size]


# An index and its payload; several payloads may claim one index.
Claim = tuple[int, bytes | memoryview]


def decode_believed(
    geometry: stripes.Geometry, claims: Sequence[Claim], size: int, segment_hash: bytes
) -> tuple[memoryview, list[int]]:
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


def _liars(coder: Coder, data: memoryview, claims: Sequence[Claim]) -> list[int]:
    true = coder.encode(data)
    return [place for place, (index, payload) in enumerate(claims) if true[index] != payload]
