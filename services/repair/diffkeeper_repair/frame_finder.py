"""Exactly one frame for a replicator that misses it: from the other sites' streams, else out of a segment."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from diffkeeper.domain import errors, frames, segments, volumes
from diffkeeper.domain.shard_headers import Stripe
from diffkeeper.log import event_log
from diffkeeper_repair.catalogue import Catalogue, Entry
from diffkeeper_repair.stripe_io import StripeIO

# Segments kept decoded: a replicator that misses one frame usually misses its neighbours.
_KEPT = 4


class FrameFinder:
    def __init__(self, logs: Mapping[str, event_log.EventLog], catalogue: Catalogue, io: StripeIO) -> None:
        self._logs = logs
        self._catalogue = catalogue
        self._io = io
        self._decoded: OrderedDict[Stripe, segments.Segment] = OrderedDict()
        self._one = asyncio.Lock()
        self.served_from_streams_total = 0
        self.served_from_shards_total = 0

    async def find(self, origin: volumes.Origin, stream_sequence: int, asking_site: str) -> frames.Frame:
        """The frame at a place of a stream, its hash computed; raises NotFound when nobody has it whole.

        Whether it continues what the asker holds, only the asker can say.
        """
        frame = await self._from_streams(origin, stream_sequence, asking_site)
        if frame is not None:
            self.served_from_streams_total += 1
            return frame
        async with self._one:
            frame = await self._from_segments(origin, stream_sequence)
        self.served_from_shards_total += 1
        return frame

    async def _from_streams(
        self, origin: volumes.Origin, stream_sequence: int, asking_site: str
    ) -> frames.Frame | None:
        for site, log in sorted(self._logs.items(), key=lambda item: item[0] != origin.site):
            if site == asking_site:
                continue  # it has looked there itself
            try:
                stored = await log.get(origin, stream_sequence)
                frame = frames.open_frame(stored.wire) if stored is not None else None
            except (errors.Transient, errors.Refused, errors.Corrupt):
                continue
            if frame is not None and (frame.header.volume, frame.header.origin) == (
                origin.volume,
                origin.site,
            ):
                return frame
        return None

    async def _from_segments(self, origin: volumes.Origin, stream_sequence: int) -> frames.Frame:
        trouble: errors.DiffKeeperError | None = None
        for entry in self._catalogue.covering(origin, stream_sequence):
            try:
                segment = await self._segment(entry)
                # A manifest says where a segment stands; the segment itself knows.
                if segment.origin == origin.site and stream_sequence in segment.sequences:
                    return frames.open_frame(segment.wire(stream_sequence))
            except errors.Corrupt as error:
                trouble = error
        raise trouble or errors.NotFound(
            f"message {stream_sequence} of {origin.stream} is in no other stream and in no segment",
            reason="no-frame",
            hint="the writer's spool may still have it; dkctl health shows what is not protected yet",
            stream=origin.stream,
            sequence=stream_sequence,
        )

    async def _segment(self, entry: Entry) -> segments.Segment:
        stripe = entry.stripe
        if stripe not in self._decoded:
            assembled = await self._io.read(entry)
            self._decoded[stripe] = assembled.segment
        self._decoded.move_to_end(stripe)
        while len(self._decoded) > _KEPT:
            self._decoded.popitem(last=False)
        return self._decoded[stripe]
