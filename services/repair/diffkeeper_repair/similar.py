"""What lost bytes may have been, from data that is like theirs: earlier versions of a page, near-duplicates. Pure.

Two questions: which of many segments are likest to what is left of a damaged one (MinHash over samples of their
shingles: Broder, 1997), and what such a segment holds between the same surroundings as a gap has. An answer is a guess
and nothing more: parity cells and the segment's hash decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Sketch = npt.NDArray[np.uint64]
# Places of a sketch; shingles of 8 bytes, of which one in 64 is looked at, chosen by what it says.
_PLACES = 64
_SHINGLE = 8
_SAMPLED = np.uint64(63)
_ODD = np.random.default_rng(0xD1FF).integers(1 << 63, dtype=np.uint64, size=_PLACES) * np.uint64(
    2
) + np.uint64(1)
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)
_HALF = np.uint64(32)
_EMPTY = np.full(_PLACES, np.iinfo(np.uint64).max, np.uint64)

# Bytes of surroundings that must be found again, how far from the gap they may be, how much around it is compared.
ANCHOR_BYTES = 32
_AWAY = (0, 32, 128, 512)
REACH_BYTES = 1024
_COMPARED = 128
_MAX_PLACES = 16
# Segments that are asked how like they are to a damaged one, and those of them that are searched.
NEIGHBOURS = 12
DONORS = 4
MAX_FILLS = 3


def sketch(data: bytes | memoryview) -> Sketch:
    """Two sketches agree in about as many places as the data share of their shingles."""
    kept: list[Sketch] = []
    # Shingles begin at every byte; those that begin eight bytes apart are words that stand in a row.
    for shift in range(min(_SHINGLE, max(0, len(data) - _SHINGLE + 1))):
        words = np.frombuffer(data, np.uint64, count=(len(data) - shift) // _SHINGLE, offset=shift)
        mixed = words * _MIX
        mixed ^= mixed >> _HALF
        kept.append(mixed[(mixed & _SAMPLED) == 0])
    sampled = np.unique(np.concatenate(kept)) if kept else _EMPTY[:0]
    if not sampled.size:
        return _EMPTY
    return np.array([(sampled * odd).min() for odd in _ODD], np.uint64)


def likeness(one: Sketch, other: Sketch) -> float:
    return float((one == other).mean())


def likest(wanted: Sketch, kept: Sequence[tuple[float, bytes]], data: bytes) -> Sequence[tuple[float, bytes]]:
    """``kept`` with one more candidate, as far as it is among the DONORS likest."""
    ranked = sorted([*kept, (likeness(wanted, sketch(data)), data)], key=lambda one: -one[0])
    return ranked[:DONORS]


def nearest(left: bytes | memoryview, candidates: Sequence[bytes], count: int) -> list[bytes]:
    """The ``count`` candidates that are likest to what is left; of equals the first."""
    wanted = sketch(left)
    ranked = sorted(candidates, key=lambda one: -likeness(wanted, sketch(one)))
    return ranked[:count]


def fills(before: bytes, after: bytes, size: int, donors: Sequence[bytes]) -> list[bytes]:
    """Up to MAX_FILLS different runs of ``size`` bytes that donors hold between surroundings like these, the likest first."""
    found: dict[bytes, int] = {}
    for donor in donors:
        for at in sorted(set(_places(before, after, size, donor))):
            fill = donor[at : at + size]
            alike = _alike_backward(donor[max(0, at - _COMPARED) : at], before) + _alike_forward(
                donor[at + size : at + size + _COMPARED], after
            )
            found[fill] = max(found.get(fill, 0), alike)
    return sorted(found, key=lambda fill: -found[fill])[:MAX_FILLS]


def _places(before: bytes, after: bytes, size: int, donor: bytes) -> Iterator[int]:
    """Where in a donor the gap would begin, by each piece of its surroundings that is found there."""
    for away in _AWAY:
        end = len(before) - away
        if end >= ANCHOR_BYTES:
            for at in _all(donor, before[end - ANCHOR_BYTES : end]):
                yield from _inside(at + ANCHOR_BYTES + away, size, donor)
        if len(after) >= away + ANCHOR_BYTES:
            for at in _all(donor, after[away : away + ANCHOR_BYTES]):
                yield from _inside(at - away - size, size, donor)


def _inside(at: int, size: int, donor: bytes) -> Iterator[int]:
    if 0 <= at <= len(donor) - size:
        yield at


def _all(donor: bytes, piece: bytes) -> Iterator[int]:
    # A piece of one byte over and over says nothing about where it is.
    if len(set(piece)) < 2:
        return
    at = donor.find(piece)
    for _ in range(_MAX_PLACES):
        if at < 0:
            return
        yield at
        at = donor.find(piece, at + 1)


def _alike_backward(one: bytes, other: bytes) -> int:
    """How many bytes before the ends of both are the same, place by place."""
    size = min(len(one), len(other))
    return _alike_forward(one[len(one) - size :], other[len(other) - size :])


def _alike_forward(one: bytes, other: bytes) -> int:
    size = min(len(one), len(other))
    return int(np.count_nonzero(np.frombuffer(one[:size], np.uint8) == np.frombuffer(other[:size], np.uint8)))
