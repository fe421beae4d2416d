"""The origin streams of all sites as a source of frames: what parity cannot give back may still stand there.

A frame is taken from the first site whose copy is whole. Where one stands in a stream says nothing about what it must be:
whoever asks compares with a hash of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from diffkeeper.domain import errors, frames, segments, volumes
from diffkeeper.log import event_log

_AT_ONCE = 32


class Streams:
    def __init__(self, logs: Mapping[str, event_log.EventLog]) -> None:
        self._logs = logs

    def nearest_first(self, origin: volumes.Origin) -> list[event_log.EventLog]:
        """The site that wrote it, then the others."""
        return sorted(self._logs.values(), key=lambda log: (log.site != origin.site, log.site))

    async def wire(self, origin: volumes.Origin, sequence: int) -> bytes | None:
        """A message that agrees with its own hash and is of this origin; None when no site that answers has it."""
        for log in self.nearest_first(origin):
            try:
                stored = await log.get(origin, sequence)
                header = frames.open_frame(stored.wire).header if stored is not None else None
            except (errors.Transient, errors.Refused, errors.Corrupt):
                continue
            if (
                stored is not None
                and header is not None
                and (header.volume, header.origin) == (origin.volume, origin.site)
            ):
                return stored.wire
        return None

    async def run(self, origin: volumes.Origin, sequences: range) -> Sequence[bytes]:
        """The messages at these places up to the first that nobody has, and no more than a segment holds."""
        found: list[bytes] = []
        for at in range(0, len(sequences), _AT_ONCE):
            for wire in await asyncio.gather(
                *(self.wire(origin, sequence) for sequence in sequences[at : at + _AT_ONCE])
            ):
                if wire is None or sum(map(len, found)) + len(wire) > segments.MAX_BYTES:
                    return found
                found.append(wire)
        return found

    async def last(self, origin: volumes.Origin) -> int:
        """The longest that the stream is at any site that answers."""
        longest = 0
        for log in self._logs.values():
            try:
                stored = await log.last(origin)
            except (errors.Transient, errors.Refused, errors.Corrupt):
                continue
            longest = max(longest, stored.stream_sequence if stored is not None else 0)
        return longest
