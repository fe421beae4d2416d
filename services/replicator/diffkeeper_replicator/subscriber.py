"""Reads the chain of a volume out of the event log: finds places in streams, and gives frames whose bytes are
verified.

A stream's own numbers are found by position, by halving: positions rise along an origin stream. Which frames
to take is decided by ``chains``; keeping them is the business of ``intake``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from diffkeeper.domain import errors, frames, positions, volumes
from diffkeeper.log import event_log
from diffkeeper_replicator import chains


class Subscriber:
    def __init__(self, volume: str, log: event_log.EventLog) -> None:
        self.volume = volume
        self._log = log

    def origin(self, link: chains.Link) -> volumes.Origin:
        return volumes.Origin(self.volume, link.site)

    async def prepare(self, chain: Sequence[chains.Link]) -> None:
        """Mirrors of the other sites' streams in the chain."""
        for site in dict.fromkeys(link.site for link in chain):
            if site != self._log.site:
                await self._log.create_mirror(volumes.Origin(self.volume, site))

    async def resolve(self, chain: Sequence[chains.Link]) -> list[chains.Link]:
        """The chain with those parents filled in that the first frame of a reign already names."""
        known = list(chain)
        for index, link in enumerate(known):
            if index == 0 or link.parent is not None:
                continue
            first = await self._first_of(link)
            if first is not None:
                known[index] = replace(link, parent=frames.Tip(first.header.parent, first.header.parent_hash))
        return known

    async def last(self, link: chains.Link) -> frames.Frame | None:
        """The newest frame in a link's stream that is no fence; None when there is none, or no stream."""
        origin = self.origin(link)
        try:
            stored = await self._log.last(origin)
        except errors.NotFound:
            return None
        while stored is not None:
            frame = frames.open_frame(stored.wire)
            if frames.Flag.FENCE not in frame.header.flags:
                return frame
            stored = (
                await self._log.get(origin, stored.stream_sequence - 1)
                if stored.stream_sequence > 1
                else None
            )
        return None

    async def beyond(
        self, link: chains.Link, position: positions.Position
    ) -> AsyncGenerator[frames.Frame, None]:
        """The frames of a reign after ``position`` that its stream holds now, fences left out."""
        origin = self.origin(link)
        try:
            sequence = await self.place_after(link, position)
        except errors.NotFound:
            return
        while (stored := await self._log.get(origin, sequence)) is not None:
            frame = frames.open_frame(stored.wire)
            if frame.position.epoch > link.epoch:
                return
            if frames.Flag.FENCE not in frame.header.flags:
                yield frame
            sequence += 1

    async def place_after(self, link: chains.Link, position: positions.Position) -> int:
        """The stream sequence of the first message after ``position``. Raises NotFound without a stream."""
        origin = self.origin(link)
        last = await self._log.last(origin)
        low, high = 0, last.stream_sequence if last is not None else 0
        # Invariant: message ``low`` stands at or before the position, everything above ``high`` after it.
        if last is not None and frames.open_frame(last.wire).position <= position:
            low = high
        # Mostly the place is close to the end, so the steps from there grow before they are halved.
        stride = 1
        while low < high:
            middle = max((low + high + 1) // 2, high - stride)
            stride *= 2
            stored = await self._log.get(origin, middle)
            if stored is None:
                raise errors.Corrupt(
                    f"message {middle} of stream {origin.stream} is missing; nothing was skipped",
                    reason="stream-gap",
                    hint="check the broker's disk",
                )
            if frames.open_frame(stored.wire).position <= position:
                low = middle
            else:
                high = middle - 1
        return low + 1

    async def read(self, link: chains.Link, first_sequence: int) -> AsyncGenerator[frames.Frame, None]:
        """Frames from a stream sequence on, without end, each one's bytes hashed and its header checked.

        A message that does not hold a frame is asked for once more by its number, in case only the delivery
        was bad.
        """
        origin = self.origin(link)
        async with aclosing(self._log.read(origin, first_sequence)) as messages:
            async for stored in messages:
                try:
                    frame = frames.open_frame(stored.wire)
                except errors.Corrupt:
                    again = await self._log.get(origin, stored.stream_sequence)
                    if again is None:
                        raise
                    frame = frames.open_frame(again.wire)
                yield frame

    async def _first_of(self, link: chains.Link) -> frames.Frame | None:
        """The first frame of a reign, if its stream holds it."""
        try:
            sequence = await self.place_after(link, positions.Position(link.epoch, 0))
        except errors.NotFound:
            return None
        while (stored := await self._log.get(self.origin(link), sequence)) is not None:
            frame = frames.open_frame(stored.wire)
            if frames.Flag.FENCE not in frame.header.flags:
                return frame if frame.position.epoch == link.epoch else None
            sequence += 1
        return None
