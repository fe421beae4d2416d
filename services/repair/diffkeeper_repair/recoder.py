"""Brings old segments into the geometry that is wanted now, in the background and within a budget.

The segment is read and believed, written in the new geometry as if it were sealed now, and only when every shard of
that stands is the old stripe removed. The two are different stripes with different keys, so nothing overwrites
anything, and whoever is killed between leaves both: the next run finds the new one whole and goes on with removing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from diffkeeper.domain import errors, stripes
from diffkeeper.domain.shard_headers import Stripe
from diffkeeper_repair import planner
from diffkeeper_repair.catalogue import Catalogue, Entry
from diffkeeper_repair.rebuilder import Rebuilder
from diffkeeper_repair.stripe_io import StripeIO

LOOK_EVERY_S = 5.0

_log = structlog.get_logger("recoder")


class Recoder:
    def __init__(
        self,
        catalogue: Catalogue,
        rebuilder: Rebuilder,
        io: StripeIO,
        geometry_of: Callable[[str], stripes.Geometry],
        bytes_per_s: int,
    ) -> None:
        self._catalogue = catalogue
        self._rebuilder = rebuilder
        self._io = io
        self._geometry_of = geometry_of
        self._bytes_per_s = bytes_per_s
        self.segments_total = 0

    async def run(self) -> None:
        while True:
            await self.round()
            await asyncio.sleep(LOOK_EVERY_S)

    def left(self, volume: str) -> int:
        """Segments of a volume that still stand in another geometry alone."""
        return sum(
            entry.stripe.volume == volume and entry.stripe not in self._catalogue.retired
            for entry in self._old()
        )

    def recognise(self) -> None:
        """Which stripes have a successor that can be read: nobody mends, scrubs or counts them any more."""
        self._catalogue.retired = {
            entry.stripe for entry in self._old() if self._spare(self._successor(entry)) >= 0
        }

    async def round(self) -> None:
        """Each old segment once; one that cannot be recoded now is left for the next round."""
        for entry in self._old():
            try:
                await self._recode(entry)
            except errors.DiffKeeperError as error:
                _log.warning(
                    "a segment stays in its old geometry", segment=entry.stripe.segment, error=error.message
                )

    async def _recode(self, entry: Entry) -> None:
        successor = self._successor(entry)
        if successor is None or successor.manifest is None:
            assembled = await self._io.read(entry)
            await self._io.write(assembled.segment, self._geometry_of(entry.stripe.volume))
            self.segments_total += 1
            await asyncio.sleep(len(assembled.data) / self._bytes_per_s)
            successor = self._successor(entry)
        self.recognise()
        if successor is not None and self._spare(successor) == successor.stripe.geometry.parity:
            await self._io.drop(entry)

    def _old(self) -> list[Entry]:
        return [
            entry
            for entry in self._catalogue.entries.values()
            if entry.stripe.geometry != self._geometry_of(entry.stripe.volume)
        ]

    def _successor(self, entry: Entry) -> Entry | None:
        stripe = entry.stripe
        return self._catalogue.entries.get(
            Stripe(stripe.volume, stripe.segment, self._geometry_of(stripe.volume))
        )

    def _spare(self, entry: Entry | None) -> int:
        if entry is None or entry.manifest is None:
            return -1
        return planner.spare(entry.stripe.geometry, self._rebuilder.plan(entry, patient=True))
