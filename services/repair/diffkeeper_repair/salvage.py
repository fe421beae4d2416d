"""A segment from shards too many of which are damaged: cell by cell, from whatever of them still agrees. Pure.

A shard that fails its digest is wrong in a few places and right in all others, and Reed-Solomon codes each byte
column by itself. So a stripe is cut into cells of 64 columns. For a cell, enough shards are taken as right and the
others are computed from them: where one more shard than was taken says the same, all of those were right (that
damage should agree by accident in 64 bytes is as likely as a hash that collides in 512 bits). Cells that no
shard vouches for are tried in all their readings. Where that is not enough, data that is like the lost one
(``similar``) is asked what may have stood there: its guesses are voices beside those of the damaged shards. What comes
out is believed by the segment's hash and by nothing else, so a wrong guess costs time and never a wrong byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from diffkeeper.domain import errors, segments, stripes
from diffkeeper_repair import coder, similar

CELL_BYTES = 64
# Choices of damaged shards that are taken for right in turn, and readings of the cells nobody vouches for.
MAX_CHOICES = 128
MAX_READINGS = 512
READINGS_MAX_BYTES = 64 * 1024 * 1024

# Stretches of open cells that are looked for in data that is alike.
MAX_GAPS = 64

Bytes = npt.NDArray[np.uint8]
# Who says what a shard is: its index, and 0 for the shard itself or the number of a guess.
Voice = tuple[int, int]


def mend(
    geometry: stripes.Geometry,
    good: Mapping[int, bytes | memoryview],
    damaged: Mapping[int, bytes | memoryview],
    size: int,
    segment_hash: bytes,
    donors: Sequence[bytes] = (),
) -> bytes:
    """The segment with this hash, from fewer than k good payloads and some that are damaged, all of the right length.

    Raises Corrupt (``too-few-shards``) when even together they are too few, ``beyond-salvage`` when their damage
    overlaps too much.
    """
    need = geometry.data - len(good)
    assert need > 0, "with enough good ones there is nothing to salvage"
    if need > len(damaged) and not donors:
        raise errors.Corrupt(
            f"{len(good)} good and {len(damaged)} damaged shards are left of a segment that needs {geometry.data}; "
            "it cannot be read",
            reason="too-few-shards",
            hint="bring back a node that held one of them, or add its directory to dkctl rescue --from",
            have=len(good),
            need=geometry.data,
        )
    work = _Work(geometry, good, damaged, size)
    for turn, choice in enumerate(itertools.islice(_choices(work.voices, need), MAX_CHOICES)):
        if not work.open.size or (turn >= len(damaged) and work.nothing_agrees):
            break
        work.take(choice)
    if donors and work.open.size:
        work.listen_to(donors)
        guessing = (choice for choice in _choices(work.voices, need) if any(guess for _, guess in choice))
        for choice in itertools.islice(guessing if work.guesses else (), MAX_CHOICES):
            if not work.open.size:
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
        self.voices: list[Voice] = [(index, 0) for index in sorted(damaged)]
        self._cells = -(-self._length // CELL_BYTES)
        self._said = {(index, 0): self._padded(payload) for index, payload in {**good, **damaged}.items()}
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

    def take(self, choice: Sequence[Voice]) -> None:
        """Read the open cells as if these voices were right in them; settle those that one for another shard confirms."""
        trusted = [*((index, 0) for index in self._good), *choice]
        data = self._decode({voice[0]: self._said[voice][self.open] for voice in trusted})
        taken = {index for index, _ in trusted}
        others = [voice for voice in self.voices if voice[0] not in taken]
        settled = np.zeros(self.open.size, bool)
        if others:
            true = self._encode(data)
            for voice in others:
                settled |= (true[voice[0]] == self._said[voice][self.open]).all(axis=1)
        self._data[:, self.open[settled]] = data[:, settled]
        if sum(kept.nbytes for _, kept in self._readings) + data.nbytes <= READINGS_MAX_BYTES:
            self._readings.append((self.open, data))
        self.open = self.open[~settled]

    def listen_to(self, donors: Sequence[bytes]) -> None:
        """Add voices: for each data shard what donors hold where the open cells are, as far as anything there is alike."""
        runs = np.split(self.open, np.flatnonzero(np.diff(self.open) > 1) + 1)
        if len(runs) > MAX_GAPS:
            return
        segment, known = self._as_known()
        for row in set(range(self._geometry.data)) - set(self._good):
            blank = self._said.get((row, 0), np.zeros((self._cells, CELL_BYTES), np.uint8))
            guesses = [blank.copy().reshape(-1) for _ in range(similar.MAX_FILLS)]
            most = 0
            for run in runs:
                begin, end = int(run[0]) * CELL_BYTES, min((int(run[-1]) + 1) * CELL_BYTES, self._length)
                at = row * self._length
                found = similar.fills(
                    _known_before(segment, known, at + begin),
                    _known_after(segment, known, at + end),
                    end - begin,
                    donors,
                )
                for fill, guess in zip(found, guesses, strict=False):
                    guess[begin:end] = np.frombuffer(fill, np.uint8)
                most = max(most, len(found))
            for number, guess in enumerate(guesses[:most], 1):
                self._said[row, number] = guess.reshape(self._cells, CELL_BYTES)
                self.voices.append((row, number))

    def _as_known(self) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        """The data shards end to end as far as good shards and settled cells say, and which bytes those are."""
        rows, known = self._data.copy(), np.ones(self._data.shape, bool)
        known[:, self.open] = False
        for index in self._good:
            if index < self._geometry.data:
                rows[index], known[index] = self._said[index, 0], True
        shape = (self._geometry.data, -1)
        return (
            rows.reshape(shape)[:, : self._length].reshape(-1),
            known.reshape(shape)[:, : self._length].reshape(-1),
        )

    @property
    def guesses(self) -> bool:
        return any(guess for _, guess in self.voices)

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


def _known_before(segment: Bytes, known: npt.NDArray[np.bool_], at: int) -> bytes:
    """The known bytes that end there."""
    first = max(0, at - similar.REACH_BYTES)
    unknown = np.flatnonzero(~known[first:at])
    return segment[first + int(unknown[-1]) + 1 if unknown.size else first : at].tobytes()


def _known_after(segment: Bytes, known: npt.NDArray[np.bool_], at: int) -> bytes:
    """The known bytes that begin there."""
    last = at + similar.REACH_BYTES
    unknown = np.flatnonzero(~known[at:last])
    return segment[at : at + int(unknown[0]) if unknown.size else last].tobytes()


def _choices(voices: Sequence[Voice], count: int) -> Iterator[tuple[Voice, ...]]:
    """Ways to take ``count`` shards, one voice for each, made one by one: there may be more than anybody can count.

    First the stretches of shards, of which few wrong ones cannot spoil all; of each the shards themselves, then the first
    guess for all that have one, and so on. Only then the mixtures.
    """
    of_shard: dict[int, list[Voice]] = {}
    for voice in sorted(voices):
        of_shard.setdefault(voice[0], []).append(voice)
    most = max(map(len, of_shard.values()), default=0)
    for subset in _subsets(sorted(of_shard), count):
        alike = [
            tuple(of_shard[index][min(turn, len(of_shard[index]) - 1)] for index in subset)
            for turn in range(most)
        ]
        yield from dict.fromkeys(alike)
    for subset in _subsets(sorted(of_shard), count) if most > 1 else ():
        yield from itertools.product(*(of_shard[index] for index in subset))


def _subsets(indexes: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    around = [*indexes, *indexes]
    windows = {tuple(sorted(around[at : at + count])): None for at in range(len(indexes))}
    if len(indexes) >= count:
        yield from windows
    for subset in itertools.combinations(indexes, count):
        if subset not in windows:
            yield subset
