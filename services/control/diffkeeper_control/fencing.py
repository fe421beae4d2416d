"""A fence frame at the end of a dead leader's own stream.

Whoever wrote there expects a last sequence that is now wrong, so compare-and-set refuses its next frame, and
an agent that begins again at that site sees a newer epoch and does not resume. Readers of the chain skip
fence frames.
"""

from __future__ import annotations

import time

from diffkeeper.domain import clocks, deltas, errors, frames, positions, volumes
from diffkeeper.log import event_log

# A writer that still appends can win the compare-and-set; each loss means it stored one more frame.
TRIES = 50


async def fence(log: event_log.EventLog, origin: volumes.Origin, epoch: int) -> frames.Tip | None:
    """Make sure that the stream of ``origin`` ends with a frame of ``epoch`` or newer.

    Returns the last frame of an older epoch, or None when there is none. Without a stream there is nothing to
    fence. Raises Unreachable or TimedOut when the broker does not answer.
    """
    for _ in range(TRIES):
        try:
            stored = await log.last(origin)
        except errors.NotFound:
            return None
        tip, last_sequence = frames.ORIGIN_TIP, 0
        stamp = clocks.from_micros(time.time_ns() // 1000)
        if stored is not None:
            last = frames.open_frame(stored.wire)
            if last.position.epoch >= epoch:
                return None
            tip, last_sequence = frames.Tip(last.position, last.hash), stored.stream_sequence
            stamp = max(stamp, last.header.last)
        try:
            await log.append(origin, fence_frame(origin, epoch, tip, stamp), last_sequence)
        except errors.Fenced:
            continue
        return tip if last_sequence else None
    raise errors.Transient(
        f"the stream {origin.stream} could not be fenced: its writer was faster {TRIES} times",
        reason="writer-too-fast",
        hint="stop the program at that site, then ask again",
    )


def fence_frame(origin: volumes.Origin, epoch: int, tip: frames.Tip, stamp: clocks.Stamp) -> frames.Frame:
    return frames.seal(
        frames.pack(deltas.Columns(), frames.Compressor()),
        volume=origin.volume,
        origin=origin.site,
        position=positions.Position(epoch, tip.position.sequence + 1),
        parent=tip.position,
        parent_hash=tip.hash,
        first=stamp,
        last=stamp,
        flags=frames.Flag.FENCE,
    )
