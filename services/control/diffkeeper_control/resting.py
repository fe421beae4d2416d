"""The receipt of a volume at rest: nothing is captured, so nothing is written that its last position does not cover,
and what the replicas say that they hold on their own disks is the whole answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from diffkeeper.domain import errors, positions, receipts
from diffkeeper_control.monitor import Monitor
from diffkeeper_control.registry import Volume

POLL_S = 0.2


async def receipt(
    monitor: Monitor, sites: list[str], volume: Volume, level: receipts.Level, timeout_s: float
) -> dict[str, Any]:
    """As an agent's ``sync`` answers; raises TimedOut when the level is not met in time.

    ``site`` was met before capture ended in order. ``since_us`` is when it was seen here to be met.
    """
    assert volume.resume is not None, "it ended at a point"
    point = volume.resume.point
    until = time.monotonic() + timeout_s
    while True:
        await asyncio.gather(*(monitor.look(site) for site in sites))
        held = holders(monitor, sites, volume)
        if level is not receipts.Level.REMOTE or any(holder.startswith("replica:") for holder in held):
            return {
                "volume": volume.name,
                "position": point.position,
                "hash": point.hash,
                "level": level.word,
                "holders": held,
                "since_us": time.time_ns() // 1000,
            }
        if time.monotonic() >= until:
            raise errors.TimedOut(
                f"level {level.word} was not reached within {timeout_s:g} s: no other site holds {point.position}; "
                "nothing written is lost",
                reason="level-unmet",
                hint="dkctl status shows who is behind",
                stored=point.position,
            )
        await asyncio.sleep(POLL_S)


def holders(monitor: Monitor, sites: list[str], volume: Volume) -> list[str]:
    """Who holds the end of the volume's log, as far as they answer now."""
    assert volume.resume is not None, "it ended at a point"
    end = positions.parse(volume.resume.point.position)
    held = [f"stream:{volume.leader}"]
    for site in sites:
        heard = monitor.replicator(site)
        status = heard.volume(volume.name) if heard.fresh and site != volume.leader else None
        if status is not None and status.get("journalled") and positions.parse(status["journalled"]) >= end:
            held.append(f"replica:{site}")
    return held
