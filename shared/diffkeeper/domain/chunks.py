"""Content-defined chunks: where content is cut is decided by the content, so that what is inserted or changed
moves few cuts, and equal content gets equal chunks in every checkpoint and every volume.

The definition (gear hash as in Xia et al., "FastCDC", 2016, with a window of 32 bytes): the hash of a place
is the sum of ``GEAR[b] << age`` of the 32 bytes before it, modulo 2^32. A chunk ends at the first place at or
after ``MIN_BYTES`` whose hash has the top bits of the strict mask all zero, from ``AVERAGE_BYTES`` on of the
lax mask, and at ``MAX_BYTES`` at the latest. ``cut_points`` is that in plain words; services have a fast twin.
A chunk is named by the BLAKE3 hash of its bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

MIN_BYTES = 8 * 1024
AVERAGE_BYTES = 32 * 1024
MAX_BYTES = 128 * 1024
WINDOW = 32
# Two bits more and two bits less than the average asks for: sizes gather around it.
STRICT_MASK = ((1 << 17) - 1) << 15
LAX_MASK = ((1 << 13) - 1) << 19
HASH_BYTES = 32


class Ref(NamedTuple):
    """A chunk as a checkpoint names it."""

    hash: bytes
    size: int


def _gear() -> tuple[int, ...]:
    stream = blake3(b"diffkeeper gear 1").digest(length=4 * 256)
    return tuple(int.from_bytes(stream[at : at + 4], "little") for at in range(0, len(stream), 4))


GEAR = _gear()


def cut_points(data: bytes) -> list[int]:
    """The ends of the chunks of ``data``, the last of which is its end. The definition, slow."""
    ends: list[int] = []
    start = 0
    while start < len(data):
        end = min(start + MAX_BYTES, len(data))
        for place in range(start + MIN_BYTES, end):
            mask = STRICT_MASK if place - start < AVERAGE_BYTES else LAX_MASK
            if _hash_before(data, place) & mask == 0:
                end = place
                break
        ends.append(end)
        start = end
    return ends


def _hash_before(data: bytes, place: int) -> int:
    total = 0
    for age, byte in enumerate(reversed(data[place - WINDOW : place])):
        total += GEAR[byte] << age
    return total & 0xFFFFFFFF
