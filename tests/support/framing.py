"""Chains of small frames for tests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from diffkeeper.domain import deltas, frames, positions, volumes

ORIGIN = volumes.Origin("orders", "east")
_COMPRESSOR = frames.Compressor()


def chain(
    count: int | None = None,
    *,
    origin: volumes.Origin = ORIGIN,
    epoch: int = 1,
    parent: frames.Tip = frames.ORIGIN_TIP,
    size: int = 64,
    seed: int = 0,
) -> Iterator[frames.Frame]:
    """Frames that follow each other, each with one write of ``size`` bytes that do not compress."""
    rng = random.Random(f"{seed}:{epoch}:{parent}")
    for number in range(count) if count is not None else itertools.count():
        columns = deltas.Columns()
        columns.add(deltas.write(2, number * size, rng.randbytes(size)))
        frame = frames.seal(
            frames.pack(columns, _COMPRESSOR),
            volume=origin.volume,
            origin=origin.site,
            position=positions.Position(epoch, parent.position.sequence + 1),
            parent=parent.position,
            parent_hash=parent.hash,
            first=number + 1,
            last=number + 1,
        )
        yield frame
        parent = frames.Tip(frame.position, frame.hash)
