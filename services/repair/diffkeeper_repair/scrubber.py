"""A tour over everything that is stored, again and again: each shard read and verified, each manifest compared.

The tour keeps to a budget of bytes a second and goes on where it was after a restart. What it finds is noted and
repaired by the rebuilder, which is told at once; the tour itself changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffkeeper.domain import errors, manifests
from diffkeeper.domain.shard_headers import Key, Stripe
from diffkeeper_repair.catalogue import Catalogue, Entry
from diffkeeper_repair.damages import Cause, DamageBook
from diffkeeper_repair.fleet import StorageFleet
from diffkeeper_repair.memory import Memory
from diffkeeper_repair.stripe_io import StripeIO, says_the_same

# The place of the tour is written down this often.
_SAVE_EVERY = 32
_IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    tour: int
    running: bool
    stripes_done: int
    stripes_total: int
    bytes_done: int
    bytes_total: int
    bytes_per_s: int
    remaining_s: float | None


class Scrubber:
    def __init__(
        self,
        fleet: StorageFleet,
        catalogue: Catalogue,
        book: DamageBook,
        io: StripeIO,
        memory: Memory,
        found: Callable[[], None],
        now_us: Callable[[], int],
        bytes_per_s: int,
        tour_s: float,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._book = book
        self._io = io
        self._memory = memory
        self._found = found
        self._now_us = now_us
        self._bytes_per_s = bytes_per_s
        self._tour_s = tour_s
        self._one = asyncio.Lock()
        self._running = False
        self.bytes_total = 0

    async def run(self) -> None:
        """Tours for ever, at most one every ``tour_s``."""
        while True:
            tour = self._memory.tour
            ended_us = tour.last_ended_us or 0
            resumes = tour.started_us > ended_us
            if resumes or self._now_us() - ended_us >= self._tour_s * 1e6:
                await self.tour(self._bytes_per_s)
            await asyncio.sleep(_IDLE_S)

    async def tour(self, bytes_per_s: int | None) -> None:
        """One whole tour, or the rest of one that was begun; without a budget, as fast as it goes."""
        async with self._one:
            self._running = True
            try:
                await self._tour(bytes_per_s)
            finally:
                self._running = False

    async def full_tour(self) -> int:
        """From the beginning, as fast as it goes; gives how many damages it found."""
        async with self._one:
            self._running = True
            before = self._book.found_total
            self._memory.tour.after, self._memory.tour.started_us = "", 0
            try:
                await asyncio.gather(*(self._fleet.relist(name) for name in self._fleet.nodes))
                await self._tour(None)
            finally:
                self._running = False
            return self._book.found_total - before

    async def _tour(self, bytes_per_s: int | None) -> None:
        tour = self._memory.tour
        if not tour.after:
            tour.started_us, tour.bytes_done = self._now_us(), 0
        loop = asyncio.get_running_loop()
        began, spent = loop.time(), 0
        for count, stripe in enumerate(self._ahead(tour.after)):
            entry = self._catalogue.entries.get(stripe)
            if entry is None:
                continue
            found_before = self._book.found_total
            size = await self.scrub(entry)
            if self._book.found_total != found_before:
                self._found()
            spent += size
            self.bytes_total += size
            tour.bytes_done += size
            tour.after = _place(stripe)
            if count % _SAVE_EVERY == _SAVE_EVERY - 1:
                self._memory.save()
            ahead_s = spent / bytes_per_s - (loop.time() - began) if bytes_per_s else 0.0
            # Also where there is no budget, other work of the loop gets its turn.
            await asyncio.sleep(max(0.0, ahead_s))
        now_us = self._now_us()
        tour.last_took_us, tour.last_ended_us = now_us - tour.started_us, now_us
        tour.after, tour.number = "", tour.number + 1
        self._memory.save()

    def _ahead(self, after: str) -> Sequence[Stripe]:
        return sorted((one for one in self._catalogue.current() if _place(one) > after), key=_place)

    async def scrub(self, entry: Entry) -> int:
        """Verify every item of one stripe that a node which answers holds; the bytes read."""
        await self._io.load_manifest(entry)
        await self._compare_manifests(entry)
        size = 0
        for node, key in entry.shards():
            if not self._fleet.answers(node) or self._book.is_bad(node, key):
                continue
            shard = await self._io.read_shard(node, key)
            size += len(shard.payload) if shard is not None else 0
        if entry.manifest is not None:
            self._note_missing(entry, entry.manifest)
        return size

    async def _compare_manifests(self, entry: Entry) -> None:
        """Where manifests differ, the segment itself says which are true."""
        read: dict[tuple[str, Key], manifests.Manifest] = {}
        for node, key in entry.manifest_copies():
            if self._fleet.answers(node) and not self._book.is_bad(node, key):
                found = await self._io.read_manifest(node, key)
                if found is not None:
                    read[node, key] = found
        first = next(iter(read.values()), None)
        if first is None or all(says_the_same(first, one) for one in read.values()):
            return
        try:
            true, _ = await self._io.truth(entry)
        except errors.Corrupt:
            return  # noted as lost
        for (node, key), one in read.items():
            if not says_the_same(true, one):
                self._book.report(node, key, Cause.MANIFEST, "it says other things than its segment")
            else:
                self._book.acquit(node, key, Cause.MANIFEST)

    def _note_missing(self, entry: Entry, manifest: manifests.Manifest) -> None:
        """A shard that the manifest places on a node which answers, and which stands nowhere."""
        for index, node in manifest.placed.items():
            if self._fleet.answers(node) and not entry.copies(index):
                key = Key(entry.stripe, manifest.epoch, index)
                self._book.report(node, key, Cause.MISSING, "the manifest places it here")

    def progress(self) -> Progress:
        tour = self._memory.tour
        ahead = len(self._ahead(tour.after)) if self._running or tour.after else 0
        total = len(self._catalogue.current())
        bytes_total = sum(node.stored_bytes for node in self._fleet.nodes.values() if node.answers)
        left = max(0, bytes_total - tour.bytes_done) if self._running else 0
        return Progress(
            tour.number,
            self._running,
            total - ahead if self._running else total,
            total,
            tour.bytes_done,
            bytes_total,
            self._bytes_per_s,
            left / self._bytes_per_s if self._running else None,
        )


def _place(stripe: Stripe) -> str:
    return f"{stripe.segment}.{stripe.volume}.{stripe.geometry}"
