"""A segment from shards too many of which are damaged: cell by cell, from whatever of them still agrees. Pure.

A shard that fails its digest is wrong in a few places and right in all others, and Reed-Solomon codes each byte
column by itself. So a stripe is cut into cells of 64 columns. For a cell, enough shards are taken as right and the
others are computed from them: where one more shard than was taken says the same, all of those were right (that
damage should agree by accident in 64 bytes is as likely as a hash that collides in 512 bits). Cells that no
shard vouches for are tried in all their readings. What comes out is believed by the segment's hash and by nothing
else, so a wrong guess costs time and never a wrong byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from diffkeeper.domain import errors, segments, stripes
from diffkeeper_repair import coder

CELL_BYTES = 64
# Choices of damaged shards that are taken for right in turn, and readings of the cells nobody vouches for.
MAX_CHOICES = 128
MAX_READINGS = 512
READINGS_MAX_BYTES = 64 * 1024 * 1024

Bytes = npt.NDArray[np.uint8]


def mend(
    geometry: stripes.Geometry,
    good: Mapping[int, bytes | memoryview],
    damaged: Mapping[int, bytes | memoryview],
    size: int,
    segment_hash: bytes,
) -> bytes:
    """The segment with this hash, from fewer than k good payloads and some that are damaged, all of the right length.

    Raises Corrupt (``too-few-shards``) when even together they are too few, ``beyond-salvage`` when their damage
    overlaps too much.
    """
    need = geometry.data - len(good)
    assert need > 0, "with enough good ones there is nothing to salvage"
    if need > len(damaged):
        raise errors.Corrupt(
            f"{len(good)} good and {len(damaged)} damaged shards are left of a segment that needs {geometry.data}; "
            "it cannot be read",
            reason="too-few-shards",
            hint="bring back a node that held one of them, or add its directory to dkctl rescue --from",
            have=len(good),
            need=geometry.data,
        )
    work = _Work(geometry, good, damaged, size)
    for turn, choice in enumerate(itertools.islice(_choices(sorted(damaged), need), MAX_CHOICES)):
        if not work.open.size or (turn >= len(damaged) and work.nothing_agrees):
            break
        work.take(choice)
    for data in itertools.islice(work.readings(), MAX_READINGS):
        if blake3(data).digest() == segment_hash:
            return data
    raise errors.Corrupt(
        f"{len(good)} good and {len(damaged)} damaged shards do not give the segment "
        f"{segments.name_of(segment_hash)}: their damage overlaps; nothing of them was used",
        reason="beyond-salvage",
        hint="bring back a node that held one of them, or add its directory to dkctl rescue --from",
    )


class _Work:
    def __init__(
        self,
        geometry: stripes.Geometry,
        good: Mapping[int, bytes | memoryview],
        damaged: Mapping[int, bytes | memoryview],
        size: int,
    ) -> None:
        self._geometry = geometry
        self._size = size
        self._length = geometry.payload_bytes(size)
        self._good = sorted(good)
        self._damaged = sorted(damaged)
        self._cells = -(-self._length // CELL_BYTES)
        self._said = {index: self._padded(payload) for index, payload in {**good, **damaged}.items()}
        # The data shards as far as they are known: k rows of cells.
        self._data = np.zeros((geometry.data, self._cells, CELL_BYTES), np.uint8)
        # Cells nobody vouched for yet, and what each choice made of them.
        self.open: npt.NDArray[np.intp] = np.arange(self._cells)
        self._readings: list[tuple[npt.NDArray[np.intp], Bytes]] = []

    def _padded(self, payload: bytes | memoryview) -> Bytes:
        # Zeros behind all shards of a stripe are a stripe of zeros: they agree.
        row = np.zeros(self._cells * CELL_BYTES, np.uint8)
        row[: self._length] = np.frombuffer(payload, np.uint8)
        return row.reshape(self._cells, CELL_BYTES)

    def take(self, choice: Sequence[int]) -> None:
        """Read the open cells as if these damaged shards were right in them; settle those that another one confirms."""
        trusted = [*self._good, *choice]
        data = self._decode({index: self._said[index][self.open] for index in trusted})
        others = [index for index in self._damaged if index not in choice]
        settled = np.zeros(self.open.size, bool)
        if others:
            true = self._encode(data)
            for index in others:
                settled |= (true[index] == self._said[index][self.open]).all(axis=1)
        self._data[:, self.open[settled]] = data[:, settled]
        if sum(kept.nbytes for _, kept in self._readings) + data.nbytes <= READINGS_MAX_BYTES:
            self._readings.append((self.open, data))
        self.open = self.open[~settled]

    @property
    def nothing_agrees(self) -> bool:
        return bool(self.open.size == self._cells)

    def readings(self) -> Iterator[bytes]:
        """The segment in every reading of its open cells: first each choice for all of them, then each mixture."""
        if not self.open.size:
            yield self._segment()
            return
        candidates = [data[:, np.isin(cells, self.open)] for cells, data in self._readings]
        for candidate in candidates:
            self._data[:, self.open] = candidate
            yield self._segment()
        if len(candidates) ** self.open.size > MAX_READINGS:
            return
        for mixture in itertools.product(range(len(candidates)), repeat=self.open.size):
            for place, which in enumerate(mixture):
                self._data[:, self.open[place]] = candidates[which][:, place]
            yield self._segment()

    def _segment(self) -> bytes:
        rows = self._data.reshape(self._geometry.data, -1)[:, : self._length]
        return rows.tobytes()[: self._size]

    def _decode(self, cells: Mapping[int, Bytes]) -> Bytes:
        """The data rows of some cells from exactly k rows of them."""
        count = next(iter(cells.values())).size
        flat = coder.of(self._geometry).decode(
            {index: row.tobytes() for index, row in cells.items()}, count * self._geometry.data
        )
        return np.frombuffer(flat, np.uint8).reshape(self._geometry.data, -1, CELL_BYTES)

    def _encode(self, data: Bytes) -> list[Bytes]:
        rows = coder.of(self._geometry).encode(data.tobytes())
        return [np.frombuffer(row, np.uint8).reshape(-1, CELL_BYTES) for row in rows]


def _choices(indexes: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """First the stretches, of which few wrong shards cannot spoil all; then every choice."""
    around = [*indexes, *indexes]
    windows = [tuple(sorted(around[at : at + count])) for at in range(len(indexes))]
    yield from dict.fromkeys(itertools.chain(windows, itertools.combinations(indexes, count)))
