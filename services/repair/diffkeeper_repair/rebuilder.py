"""Brings stripes back to what they must be: the most endangered first, a bounded number at a time.

For each stripe: read it, believe it by its hash, write what is missing under a new epoch, read that back, tell every
node of the stripe with a new manifest, and only then remove what was replaced. Killed anywhere in this, it leaves
more than there was, and the next run finds the rest to do by looking.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import structlog

from diffkeeper.domain import errors, manifests, shard_headers
from diffkeeper.domain.shard_headers import MANIFEST, Key, Stripe
from diffkeeper_repair import planner
from diffkeeper_repair.assembly import Coded
from diffkeeper_repair.catalogue import Catalogue, Entry
from diffkeeper_repair.damages import DamageBook
from diffkeeper_repair.fleet import StorageFleet
from diffkeeper_repair.planner import Copy, Plan
from diffkeeper_repair.stripe_io import StripeIO

IN_FLIGHT = 4
LOOK_EVERY_S = 5.0
# Passes over one stripe: write, tell, remove, and one more for what a node did meanwhile.
_MAX_PASSES = 6

_log = structlog.get_logger("rebuilder")


@dataclass(slots=True)
class Progress:
    """Of the round that runs, or of the last one."""

    running: bool = False
    stripes_total: int = 0
    stripes_done: int = 0
    shards_written: int = 0
    bytes_written: int = 0
    waiting: int = 0  # shards whose node may come back
    homeless: int = 0  # shards for which no node is free
    failed: list[str] = field(default_factory=list)


class Rebuilder:
    def __init__(
        self,
        fleet: StorageFleet,
        catalogue: Catalogue,
        book: DamageBook,
        io: StripeIO,
        bytes_per_s: int,
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._book = book
        self._io = io
        self._bytes_per_s = bytes_per_s
        # When the budget is used up to, by the loop's clock.
        self._paid_until = 0.0
        self._round = asyncio.Lock()
        self._busy: dict[Stripe, asyncio.Lock] = {}
        self._plans: dict[Stripe, tuple[tuple[object, ...], Plan]] = {}
        self.wanted = asyncio.Event()
        self.progress = Progress()
        self.shards_written_total = 0
        self.bytes_written_total = 0

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self.wanted.wait()
            except TimeoutError:
                pass
            self.wanted.clear()
            await self.round(patient=True)

    async def round(self, *, patient: bool) -> Progress:
        """Mend every stripe that needs it once. Without ``patient`` no node that is away is waited for."""
        async with self._round:
            order = self._endangered(patient)
            self.progress = progress = Progress(running=True, stripes_total=len(order))
            slots = asyncio.Semaphore(IN_FLIGHT)

            async def mend(stripe: Stripe) -> None:
                async with slots:
                    if patient:
                        await self._pay(stripe)
                    await self._mend_or_say(stripe, progress, patient)

            try:
                await asyncio.gather(*(mend(stripe) for stripe in order))
            finally:
                progress.running = False
            return progress

    async def _pay(self, stripe: Stripe) -> None:
        """Wait until the budget bears the reading and writing of a stripe; one that has nothing to spare does not wait."""
        entry = self._catalogue.entries.get(stripe)
        if entry is None or entry.manifest is None:
            return
        found = self.plan(entry, patient=True)
        if not found.write or planner.spare(stripe.geometry, found) <= 0:
            return
        geometry = stripe.geometry
        # Each shard that is written is read back.
        shards = geometry.data + 2 * len(found.write)
        size = shards * geometry.payload_bytes(entry.manifest.segment_bytes)
        now = asyncio.get_running_loop().time()
        self._paid_until = max(self._paid_until, now) + size / self._bytes_per_s
        await asyncio.sleep(self._paid_until - now)

    def plan(self, entry: Entry, *, patient: bool) -> Plan:
        """What is to be done about a stripe; remembered until something it follows from has changed."""
        fleet = self._fleet.view()
        because = (entry.version, self._book.version_of(entry.stripe), tuple(fleet.nodes.values()), patient)
        known = self._plans.get(entry.stripe)
        if known is not None and known[0] == because:
            return known[1]
        found = planner.plan(
            bytes.fromhex(entry.stripe.segment),
            entry.stripe.geometry,
            self._fleet.copies(entry.where),
            fleet,
            patient=patient,
        )
        self._plans[entry.stripe] = (because, found)
        return found

    def _endangered(self, patient: bool) -> list[Stripe]:
        plans = {
            stripe: self.plan(entry, patient=patient) for stripe, entry in self._catalogue.current().items()
        }
        self._plans = {stripe: known for stripe, known in self._plans.items() if stripe in plans}
        needy = {
            stripe: found
            for stripe, found in plans.items()
            if not found.is_idle or found.waiting or found.homeless
        }
        for stripe in plans.keys() - needy.keys():
            self._book.settle(stripe, self._fleet.answers)
        return sorted(needy, key=lambda stripe: (planner.spare(stripe.geometry, needy[stripe]), stripe))

    async def _mend_or_say(self, stripe: Stripe, progress: Progress, patient: bool) -> None:
        try:
            await self.mend(stripe, progress, patient=patient)
        except (errors.Corrupt, errors.Transient, errors.Refused) as error:
            progress.failed.append(f"{stripe.volume} {stripe.segment}: {error.message}")
            _log.warning(error.message, reason=error.reason, segment=stripe.segment)
        progress.stripes_done += 1

    async def mend(self, stripe: Stripe, progress: Progress, *, patient: bool) -> None:
        """Until nothing is left to do for the stripe. Raises Corrupt when it cannot be read."""
        async with self._busy.setdefault(stripe, asyncio.Lock()):
            for _ in range(_MAX_PASSES):
                entry = self._catalogue.entries.get(stripe)
                if entry is None:
                    return
                found = self.plan(entry, patient=patient)
                if found.is_idle:
                    progress.waiting += len(found.waiting)
                    progress.homeless += len(found.homeless)
                    if not found.waiting and not found.homeless:
                        self._book.settle(stripe, self._fleet.answers)
                    return
                if not await self._carry_out(entry, found, progress):
                    return

    async def _carry_out(self, entry: Entry, found: Plan, progress: Progress) -> bool:
        """One pass; False when nothing could be changed by it."""
        changed = False
        manifest = await self._io.load_manifest(entry)
        epoch = entry.newest_epoch
        if found.write or manifest is None or manifest.epoch != epoch or self._has_bad_manifest(entry, epoch):
            refills = manifest is not None and self._only_refills(entry, found, manifest)
            manifest, coded = await self._io.remake(entry, found.write)
            if refills and manifest is entry.manifest:
                await self._write(coded, found, epoch, progress)
                await self._io.tell(manifest, sorted({*found.write.values(), *found.tell}))
            else:
                epoch = shard_headers.next_epoch(epoch)
                placed = self._placed(entry) | await self._write(coded, found, epoch, progress)
                manifest = replace(manifest, epoch=epoch, placed=placed)
                await self._io.tell(manifest, sorted(set(placed.values())))
            changed = True
        elif found.tell:
            changed = bool(await self._io.tell(manifest, found.tell))
        # One after the other: two copies of a shard must not be each other's proof.
        for copy in [copy for copy in found.remove if copy.key.index != MANIFEST]:
            changed |= await self._remove(entry, copy, manifest)
        old = [copy for copy in found.remove if copy.key.index == MANIFEST]
        gone = await asyncio.gather(*(self._remove(entry, copy, manifest) for copy in old))
        return changed or any(gone)

    async def _write(self, coded: Coded, found: Plan, epoch: int, progress: Progress) -> dict[int, str]:
        async def write(index: int, node: str) -> None:
            await self._io.put_shard(coded, index, epoch, node)
            size = len(coded.payloads[index])
            progress.shards_written += 1
            progress.bytes_written += size
            self.shards_written_total += 1
            self.bytes_written_total += size

        outcomes = await asyncio.gather(
            *(write(index, node) for index, node in found.write.items()), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        return dict(found.write)

    def _only_refills(self, entry: Entry, found: Plan, manifest: manifests.Manifest) -> bool:
        """Whether each shard goes where the newest manifest says it is, and nothing of that name is there: the node lost
        it. Then nothing is replaced, every other node's manifest stays true, and only this node is told.
        """
        epoch = entry.newest_epoch
        return (
            bool(found.write)
            and manifest.epoch == epoch
            and not self._has_bad_manifest(entry, epoch)
            and all(
                manifest.placed.get(index) == node
                and node not in entry.where.get(Key(entry.stripe, epoch, index), ())
                for index, node in found.write.items()
            )
        )

    def _placed(self, entry: Entry) -> dict[int, str]:
        placed: dict[int, str] = {}
        for index in range(entry.stripe.geometry.shards):
            for node, key in entry.copies(index):
                if self._fleet.answers(node) and not self._book.is_bad(node, key):
                    placed.setdefault(index, node)
        return placed

    def _has_bad_manifest(self, entry: Entry, epoch: int) -> bool:
        return any(
            key.epoch == epoch and self._book.is_bad(node, key) for node, key in entry.manifest_copies()
        )

    async def _remove(self, entry: Entry, copy: Copy, manifest: manifests.Manifest) -> bool:
        """Remove what was replaced, once the replacement has been read again; whether it is gone."""
        if not self._fleet.answers(copy.node):
            return False
        if copy.key.index == MANIFEST:
            proven = any(
                key == manifest.key and node != copy.node for node, key in entry.manifest_copies()
            ) or (copy.key != manifest.key and copy.node in entry.where.get(manifest.key, ()))
        else:
            proven = await self._is_proven(entry, copy)
        if proven:
            await self._fleet.remove(copy.node, copy.key)
        return proven

    async def _is_proven(self, entry: Entry, doomed: Copy) -> bool:
        for node, key in entry.copies(doomed.key.index):
            if (node, key) == (doomed.node, doomed.key) or self._book.is_bad(node, key):
                continue
            if self._fleet.answers(node) and await self._io.read_shard(node, key) is not None:
                return not self._book.is_bad(node, key)
        return False

    # -- strays --------------------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Remove torn items of stripes that are whole again: what a killed writer left behind. How many."""
        swept = 0
        for node, torn in list(self._catalogue.torn.items()):
            for key in sorted(torn):
                if self._fleet.answers(node) and self._is_settled(key):
                    await self._fleet.remove(node, key)
                    self._book.repaired(node, key)
                    swept += 1
        return swept

    def _is_settled(self, key: Key) -> bool:
        entry = self._catalogue.entries.get(key.stripe)
        if entry is None or entry.manifest is None:
            return False
        found = self.plan(entry, patient=False)
        return not found.write and planner.spare(key.stripe.geometry, found) == key.stripe.geometry.parity
