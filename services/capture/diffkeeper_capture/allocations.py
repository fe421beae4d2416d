"""What fallocate(2) does to the bytes of a file, by its mode. Pure."""

from __future__ import annotations

from dataclasses import dataclass

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
COLLAPSE_RANGE = 0x08
ZERO_RANGE = 0x10
INSERT_RANGE = 0x20
UNSHARE_RANGE = 0x40
WRITE_ZEROES = 0x80
_KNOWN = KEEP_SIZE | PUNCH_HOLE | COLLAPSE_RANGE | ZERO_RANGE | INSERT_RANGE | UNSHARE_RANGE | WRITE_ZEROES


@dataclass(frozen=True, slots=True)
class Effect:
    """``moves``: what follows the range has new places. ``zeroed``: so many bytes of it are zeros now.
    ``size``: the file's new one, None when it has not changed.
    """

    moves: bool = False
    zeroed: int = 0
    size: int | None = None


def effect_of(mode: int, offset: int, length: int, size: int) -> Effect:
    """Of a successful call after which the file had ``size`` bytes. A mode that is not known may have done
    anything, so it counts as one that moves.
    """
    if mode & (COLLAPSE_RANGE | INSERT_RANGE) or mode & ~_KNOWN:
        return Effect(moves=True)
    zeroed = length if mode & (PUNCH_HOLE | ZERO_RANGE | WRITE_ZEROES) else 0
    grew = not mode & KEEP_SIZE and offset + length >= size
    return Effect(zeroed=zeroed, size=size if grew else None)
