"""The fast twin of ``domain.chunks.cut_points``, over a stream of blocks.

The hash of every place is made for a whole block at once by doubling: the sum over 2n bytes is the sum over n
bytes plus that of the n bytes before, shifted. numpy works without the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from diffkeeper.domain import chunks

# Cut in one go.
BLOCK_BYTES = 1024 * 1024
_GEAR = np.array(chunks.GEAR, dtype=np.uint32)
# Hashed in one go: both tables of sums stay in the processor's cache.
_STEP = 128 * 1024
# All bits of a mask of top bits are zero in the numbers below its lowest bit.
_STRICT_BELOW = np.uint32(chunks.STRICT_MASK & -chunks.STRICT_MASK)
_LAX_BELOW = np.uint32(chunks.LAX_MASK & -chunks.LAX_MASK)


def cut(blocks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """The chunks of the blocks put together. Holds at most two blocks and one chunk."""
    held = bytearray()
    for block in blocks:
        held += block
        if len(held) < BLOCK_BYTES + chunks.MAX_BYTES:
            continue
        data = bytes(held)
        start = 0
        for end in _ends(data):
            if len(data) - start < chunks.MAX_BYTES:
                break  # what comes next may still belong to this chunk
            yield memoryview(data)[start:end]
            start = end
        held = bytearray(data[start:])
    data, start = bytes(held), 0
    for end in _ends(data):
        yield memoryview(data)[start:end]
        start = end


def first_chunks(data: bytes, whole: bool) -> list[bytes]:
    """The chunks that ``data`` begins with. Unless it is ``whole``, its last chunk counts only where the
    content itself ends it; then nothing, or a chunk that more of it could have made longer, is left over.
    """
    ends = _ends(data)
    if not whole and not _is_natural(data, ends):
        ends.pop()
        if not ends:
            # Nothing here ends a chunk; the caller gave as much as a chunk can have.
            ends = [min(len(data), chunks.MAX_BYTES)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _is_natural(data: bytes, ends: list[int]) -> bool:
    """Whether the last chunk would end there whatever followed."""
    size = ends[-1] - (ends[-2] if len(ends) > 1 else 0)
    if size == chunks.MAX_BYTES:
        return True
    if size < chunks.MIN_BYTES:
        return False
    places, hashes = _candidates(np.frombuffer(data[-chunks.WINDOW :], dtype=np.uint8))
    at_end = hashes[places == min(chunks.WINDOW, len(data))]
    below = _STRICT_BELOW if size < chunks.AVERAGE_BYTES else _LAX_BELOW
    return bool(len(at_end) and at_end[0] < below)


def _ends(data: bytes) -> list[int]:
    """``cut_points`` of ``data``."""
    if len(data) <= chunks.MIN_BYTES:
        return [len(data)] if data else []
    places, hashes = _candidates(np.frombuffer(data, dtype=np.uint8))
    return _choose(len(data), places[hashes < _STRICT_BELOW], places)


def _choose(size: int, strict: NDArray[np.int64], lax: NDArray[np.int64]) -> list[int]:
    ends: list[int] = []
    start = 0
    while start < size:
        end = min(start + chunks.MAX_BYTES, size)
        at = int(np.searchsorted(strict, start + chunks.MIN_BYTES))
        if at < len(strict) and strict[at] < min(start + chunks.AVERAGE_BYTES, end):
            end = int(strict[at])
        else:
            at = int(np.searchsorted(lax, start + chunks.AVERAGE_BYTES))
            if at < len(lax) and lax[at] < end:
                end = int(lax[at])
        ends.append(end)
        start = end
    return ends


def _candidates(data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Places whose hash the lax mask takes, and their hashes. The first places of ``data`` are hashed over
    fewer bytes; nobody cuts there.
    """
    places, hashes = [], []
    sums, shifted = np.empty(_STEP + chunks.WINDOW, np.uint32), np.empty(_STEP + chunks.WINDOW, np.uint32)
    for at in range(0, len(data), _STEP):
        before = min(at, chunks.WINDOW - 1)
        part = data[at - before : at + _STEP]
        total, older = sums[: len(part)], shifted[: len(part)]
        np.take(_GEAR, part, out=total)
        width = 1
        while width < chunks.WINDOW:
            np.left_shift(total[:-width], np.uint32(width), out=older[width:])
            older[:width] = 0
            total += older
            width *= 2
        found = np.flatnonzero(total[before:] < _LAX_BELOW) + before
        # total[i] is of the bytes up to and with i, so it belongs to the place after it.
        places.append(found + (at - before + 1))
        hashes.append(total[found])
    return np.concatenate(places), np.concatenate(hashes)
