"""The rows of ``dkctl log``: from a follower's journal, or the leader's own stream where nobody follows."""

from __future__ import annotations

from typing import Any

from diffkeeper.domain import clocks, errors, frames, positions
from diffkeeper_control import registry
from diffkeeper_control.embedded import Embedded
from diffkeeper_control.monitor import Monitor


class LogReader:
    def __init__(self, embedded: Embedded, known: registry.Registry, monitor: Monitor) -> None:
        self._embedded = embedded
        self._registry = known
        self._monitor = monitor

    async def read(self, name: str, after: str | None, limit: int) -> dict[str, Any]:
        volume = self._registry.get(name)
        if after is not None:
            positions.parse(after)
        sites = [site for site in self._embedded.sites if site != volume.leader]
        trouble: errors.DiffKeeperError | None = None
        for site in [site for site in sites if self._monitor.replicator(site).volume(name) is not None]:
            try:
                rows = await self._embedded.clients[site].replicator.log(name, after, limit)
            except errors.DiffKeeperError as error:
                trouble = error
                continue
            return {"volume": name, "source": f"replicator:{site}", "frames": rows["frames"], "age_ms": 0}
        if self._embedded.is_stopped(volume.leader):
            raise trouble or errors.Unreachable(
                f"no site that runs holds the log of volume {name}",
                reason="no-log",
                hint="start a site that has it",
            )
        rows_read = await self._from_stream(volume, after, limit)
        return {"volume": name, "source": f"stream:{volume.leader}", "frames": rows_read, "age_ms": 0}

    async def _from_stream(
        self, volume: registry.Volume, after: str | None, limit: int
    ) -> list[dict[str, Any]]:
        """The newest rows, read backwards from the end of the leader's stream."""
        log = await self._embedded.clients[volume.leader].broker.log()
        floor = positions.START if after is None else positions.parse(after)
        rows: list[dict[str, Any]] = []
        stored = await log.last(volume.origin)
        while stored is not None and len(rows) < limit:
            frame = frames.open_frame(stored.wire)
            if frame.position <= floor:
                break
            rows.append(_row(frame))
            if stored.stream_sequence == 1:
                break
            stored = await log.get(volume.origin, stored.stream_sequence - 1)
        return rows[::-1]


def _row(frame: frames.Frame) -> dict[str, Any]:
    header = frame.header
    return {
        "position": str(header.position),
        "parent": str(header.parent),
        "hash": frame.hash.hex(),
        "origin": header.origin,
        "flags": [flag.name.lower() for flag in frames.Flag if flag in header.flags and flag.name],
        "fidelity": header.fidelity.name.lower(),
        "count": header.count,
        "bytes": len(frame.wire),
        "first_us": clocks.to_micros(header.first),
        "last_us": clocks.to_micros(header.last),
        "successor": header.successor,
    }
