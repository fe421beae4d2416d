"""One sealer for each origin stream that any site holds, made when the stream is first seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from diffkeeper.domain import errors, stripes, volumes
from diffkeeper.log import event_log
from diffkeeper_repair.catalogue import Catalogue
from diffkeeper_repair.damages import DamageBook
from diffkeeper_repair.sealer import DISCOVER_EVERY_S, StreamSealer
from diffkeeper_repair.stripe_io import StripeIO

_log = structlog.get_logger("sealer")


class Sealers:
    def __init__(
        self,
        logs: Mapping[str, event_log.EventLog],
        catalogue: Catalogue,
        book: DamageBook,
        io: StripeIO,
        geometry: Callable[[str], stripes.Geometry],
        age_s: float,
    ) -> None:
        self.streams: dict[volumes.Origin, StreamSealer] = {}
        self._logs = logs
        self._catalogue = catalogue
        self._book = book
        self._io = io
        self._geometry = geometry
        self._age_s = age_s

    async def run(self) -> None:
        """Look for new streams now and then; each gets a task of this one's group."""
        self.streams.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                for origin in await self.discover():
                    if origin not in self.streams:
                        sealer = self._make(origin)
                        self.streams[origin] = sealer
                        group.create_task(sealer.run(), name=f"seal-{origin.stream}")
                for sealer in self.streams.values():
                    sealer.look_back()
                await asyncio.sleep(DISCOVER_EVERY_S)

    def _make(self, origin: volumes.Origin) -> StreamSealer:
        return StreamSealer(
            origin,
            self._logs,
            self._catalogue,
            self._book,
            self._io,
            lambda: self._geometry(origin.volume),
            self._age_s,
        )

    async def discover(self) -> list[volumes.Origin]:
        """Every origin that a site which answers holds a stream of."""
        found: set[volumes.Origin] = set()
        for log in self._logs.values():
            try:
                found.update(await log.origins())
            except (errors.Transient, errors.Refused) as error:
                _log.debug("a site was not asked for its streams", site=log.site, error=error.message)
        return sorted(found, key=lambda origin: origin.stream)

    async def flush(self, timeout_s: float) -> None:
        """Seal everything that the streams hold now; raises TimedOut when that is not done in time."""
        try:
            async with asyncio.timeout(timeout_s):
                for origin in await self.discover():
                    await self._flush(origin)
        except TimeoutError:
            behind = [
                f"{one.origin.stream} at {one.sealed} of {one.seen}"
                + (f": {one.trouble.message}" if one.trouble is not None else "")
                for one in self.streams.values()
                if one.sealed < one.seen
            ]
            raise errors.TimedOut(
                f"not everything was sealed within {timeout_s:g} s ({'; '.join(behind) or 'streams do not answer'})",
                reason="not-sealed",
                hint="dkctl health shows what is not protected yet",
            ) from None

    async def _flush(self, origin: volumes.Origin) -> None:
        last = await self.last(origin)
        while True:
            sealer = self.streams.get(origin)
            if sealer is not None and sealer.sealed >= last:
                return
            if sealer is not None:
                sealer.flush(last)
            await asyncio.sleep(0.05)

    async def last(self, origin: volumes.Origin) -> int:
        """The longest that the stream is at any site that answers."""
        found = 0
        for log in self._logs.values():
            try:
                stored = await log.last(origin)
            except (errors.Transient, errors.Refused, errors.Corrupt):
                continue
            found = max(found, stored.stream_sequence if stored is not None else 0)
        return found
