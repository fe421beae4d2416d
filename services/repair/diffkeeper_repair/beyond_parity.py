"""Where the shards of a stripe are too few: the streams its frames came from, and segments that may be like it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from diffkeeper.domain import errors
from diffkeeper.domain.shard_headers import Stripe
from diffkeeper_repair import assembly, similar
from diffkeeper_repair.assembly import Assembled, Shard
from diffkeeper_repair.catalogue import Catalogue, Entry
from diffkeeper_repair.streams import Streams


class BeyondParity:
    def __init__(self, catalogue: Catalogue, streams: Streams) -> None:
        self._catalogue = catalogue
        self._streams = streams
        # Stripes as they were when nothing like them helped: asked again only once something of them has changed.
        self._in_vain: dict[Stripe, int] = {}

    async def from_streams(self, entry: Entry, shards: Sequence[Shard]) -> Assembled | None:
        """The frames it was sealed of, where they still stand. Notes as strange what the streams contradict."""
        known = entry.manifest or next((shard.header for shard in shards), None)
        if known is None:
            return None
        span = known.span
        wires = await self._streams.run(span.stream, range(span.first_sequence, span.last_sequence + 1))
        if len(wires) == span.count:
            try:
                return await asyncio.to_thread(assembly.from_wires, entry.stripe, span, wires, shards)
            except errors.Corrupt:
                self._catalogue.strange.add(entry.stripe)
        elif wires and await self._streams.last(span.stream) < span.first_sequence + len(wires):
            # It claims more than the stream ever had, so what the stream has is not what it claims.
            self._catalogue.strange.add(entry.stripe)
        return None

    def was_in_vain(self, entry: Entry) -> None:
        """What ``donors`` gave did not help."""
        self._in_vain[entry.stripe] = entry.version

    async def donors(
        self, entry: Entry, left: Sequence[Shard], read: Callable[[Entry], Awaitable[Assembled | None]]
    ) -> Sequence[bytes]:
        """Segments of the same stream that are likest to what is ``left`` of this one: of its neighbours, for what a
        program writes again it writes soon.
        """
        if entry.manifest is None or not left or self._in_vain.get(entry.stripe) == entry.version:
            return []
        span = entry.manifest.span
        others = [one for one in self._catalogue.spans(span.stream) if one[1] is not entry]
        others.sort(key=lambda one: abs(one[0].first_sequence - span.first_sequence))
        wanted = await asyncio.to_thread(
            lambda: similar.sketch(b"".join(shard.payload for shard in left[: entry.stripe.geometry.data]))
        )
        kept: Sequence[tuple[float, bytes]] = []
        for _, other in others[: similar.NEIGHBOURS]:
            found = await read(other)
            if found is not None:
                kept = await asyncio.to_thread(similar.likest, wanted, kept, bytes(found.data))
        return [data for _, data in kept]
