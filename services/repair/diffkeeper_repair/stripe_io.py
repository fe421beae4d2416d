"""Reading and writing whole stripes on the fleet.

Reading takes what it needs from the nodes that answer, verifies every shard, notes what is damaged, and goes on with
others until the segment's own hash agrees. Writing is in two steps: shards on their nodes, read back, and then the
manifest that says so; whatever is left when it is killed between the two is enough, or is made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

from diffkeeper.domain import errors, manifests, segments, stripes
from diffkeeper.domain.shard_headers import MANIFEST, Key, Stripe
from diffkeeper_repair import assembly
from diffkeeper_repair.assembly import Assembled, Coded, Shard
from diffkeeper_repair.beyond_parity import BeyondParity
from diffkeeper_repair.catalogue import Catalogue, Entry
from diffkeeper_repair.damages import Cause, DamageBook
from diffkeeper_repair.fleet import StorageFleet


@dataclass(frozen=True, slots=True)
class _Left:
    """What there is of a stripe that parity does not give back."""

    shards: Sequence[Shard]
    damaged: Sequence[Shard]
    trouble: errors.Corrupt | None


class StripeIO:
    def __init__(
        self,
        fleet: StorageFleet,
        catalogue: Catalogue,
        book: DamageBook,
        beyond: BeyondParity,
        now_us: Callable[[], int],
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._book = book
        self._beyond = beyond
        self._now_us = now_us
        self.mended_by_likeness_total = 0

    # -- reading ---------------------------------------------------------------------------------------------

    async def read(self, entry: Entry) -> Assembled:
        """The segment of a stripe; raises Corrupt, and notes it as lost, when what answers does not give it."""
        found = await self._from_parity(entry)
        return found if isinstance(found, Assembled) else await self._salvage(entry, found)

    async def _from_parity(self, entry: Entry) -> Assembled | _Left:
        """From enough whole shards; otherwise what there is of it."""
        need = entry.stripe.geometry.data
        waiting = self._candidates(entry)
        shards: list[Shard] = []
        damaged: list[Shard] = []
        trouble: errors.Corrupt | None = None
        while waiting:
            # As many as are missing; once they contradicted each other, all there are.
            short = len(waiting) if trouble is not None else max(need - _distinct(shards), 1)
            batch, waiting = waiting[:short], waiting[short:]
            found = await asyncio.gather(
                *(self._fetch(node, key, assembly.open_header) for node, key in batch)
            )
            shards += [shard for shard in found if shard is not None]
            if _distinct(shards) < need:
                continue
            try:
                assembled = await asyncio.to_thread(assembly.assemble, entry.stripe, shards)
            except errors.Corrupt as error:
                trouble = error
                # Only now it is worth asking each shard for its digest.
                shards, bad = await asyncio.to_thread(assembly.sift, shards)
                self._report(entry, bad, Cause.DIGEST, "its bytes are not those of its digest")
                damaged += bad
                if not bad or _distinct(shards) < need:
                    continue
                try:
                    assembled = await asyncio.to_thread(assembly.assemble, entry.stripe, shards)
                except errors.Corrupt as again:
                    trouble = again
                    continue
            return self._believe(entry, assembled)
        return _Left(shards, damaged, trouble)

    def _believe(self, entry: Entry, assembled: Assembled) -> Assembled:
        self._report(entry, assembled.liars, Cause.LIE, "it agrees with itself and not with its segment")
        return self._readable(entry, assembled)

    def _readable(self, entry: Entry, assembled: Assembled) -> Assembled:
        self._book.readable(entry.stripe)
        self._catalogue.strange.discard(entry.stripe)
        return assembled

    async def _salvage(self, entry: Entry, left: _Left) -> Assembled:
        """Where parity ends: the streams, then what damaged shards still agree on, then that and what is like them.
        Raises Corrupt, and notes the stripe as lost.
        """
        trouble = left.trouble
        good, bad = await asyncio.to_thread(assembly.sift, left.shards)
        self._report(entry, bad, Cause.DIGEST, "its bytes are not those of its digest")
        found = await self._beyond.from_streams(entry, good)
        if found is not None:
            return self._believe(entry, found)
        hurt = [*left.damaged, *bad]
        try:
            return self._readable(entry, await asyncio.to_thread(assembly.mend, entry.stripe, good, hurt))
        except errors.Corrupt as error:
            if error.reason == "beyond-salvage":
                trouble = error
        donors = await self._beyond.donors(entry, [*good, *hurt], self._whole)
        if not donors:
            self._lose(entry, good, trouble)
        try:
            found = await asyncio.to_thread(assembly.mend, entry.stripe, good, hurt, donors)
        except errors.Corrupt:
            self._beyond.was_in_vain(entry)
            self._lose(entry, good, trouble)
        self.mended_by_likeness_total += 1
        return self._readable(entry, found)

    async def _whole(self, entry: Entry) -> Assembled | None:
        found = await self._from_parity(entry)
        return found if isinstance(found, Assembled) else None

    def _lose(self, entry: Entry, good: Sequence[Shard], trouble: errors.Corrupt | None) -> NoReturn:
        need = entry.stripe.geometry.data
        lost = trouble or errors.Corrupt(
            f"{_distinct(good)} good shards of {entry.stripe.segment} of {entry.stripe.volume} can be reached and "
            f"{need} are needed" + (f": {entry.manifest.span.words()}" if entry.manifest is not None else ""),
            reason="too-few-shards",
            hint="dkctl nodes shows which nodes are away; bring one of them back",
        )
        self._book.report_lost(entry.stripe, lost.message)
        raise lost

    def _candidates(self, entry: Entry) -> list[tuple[str, Key]]:
        """Copies on nodes that answer: good ones first, data before parity, one of each index before the second."""
        ordered: list[tuple[bool, int, int, str, Key]] = []
        for index in range(entry.stripe.geometry.shards):
            reachable = [(node, key) for node, key in entry.copies(index) if self._fleet.answers(node)]
            reachable.sort(key=lambda copy: self._book.is_bad(*copy))
            for turn, (node, key) in enumerate(reachable):
                ordered.append((self._book.is_bad(node, key), turn, index, node, key))
        return [(node, key) for *_, node, key in sorted(ordered)]

    async def read_shard(self, node: str, key: Key) -> Shard | None:
        """A shard that agrees with itself and with its key; None, and noted, when it does not."""
        return await self._fetch(node, key, assembly.open_shard)

    async def _fetch(
        self, node: str, key: Key, opening: Callable[[bytes, str, Stripe | None], Shard]
    ) -> Shard | None:
        try:
            data = await self._fleet.store(node).get(key)
        except errors.Transient:
            return None  # the watch of the fleet sees it, too
        if data is None:
            self._book.report(node, key, Cause.MISSING, "the node does not give it")
            return None
        try:
            shard = await asyncio.to_thread(opening, data, node, key.stripe)
        except errors.Corrupt as error:
            cause = Cause.FOREIGN if error.reason == "foreign-shard" else Cause.DIGEST
            self._book.report(node, key, cause, error.message)
            return None
        if shard.header.index != key.index or shard.header.epoch != key.epoch:
            self._book.report(node, key, Cause.FOREIGN, "it is another shard of its stripe")
        elif shard.was_repaired:
            self._book.report(node, key, Cause.HEADER, "flipped bytes in its header were put right")
        else:
            manifest = (
                self._catalogue.entries[key.stripe].manifest
                if key.stripe in self._catalogue.entries
                else None
            )
            if manifest is not None and manifest.digests[key.index] != shard.header.payload_digest:
                self._book.report(node, key, Cause.LIE, "it agrees with itself and not with its manifest")
        return shard

    def _report(self, entry: Entry, shards: Sequence[Shard], cause: Cause, detail: str) -> None:
        for shard in shards:
            for node, key in entry.copies(shard.header.index):
                if node == shard.source:
                    self._book.report(node, key, cause, detail)

    async def truth(self, entry: Entry) -> tuple[manifests.Manifest, Coded]:
        """The stripe decoded, believed and coded anew, and what its manifest must say. Raises Corrupt."""
        return await self._truth(entry, await self.read(entry))

    async def remake(self, entry: Entry, indexes: Collection[int]) -> tuple[manifests.Manifest, Coded]:
        """The same for some shards of a stripe alone, as long as its manifest agrees with them."""
        assembled = await self.read(entry)
        if entry.manifest is not None:
            coded = await asyncio.to_thread(assembly.code_some, assembled, entry.manifest, indexes)
            if coded is not None:
                return entry.manifest, coded
        return await self._truth(entry, assembled)

    async def _truth(self, entry: Entry, assembled: Assembled) -> tuple[manifests.Manifest, Coded]:
        coded = await asyncio.to_thread(
            assembly.code_bytes, assembled.segment, assembled.data, entry.stripe.geometry
        )
        known = entry.manifest
        true = coded.manifest(
            entry.newest_epoch, {}, known.sealed_us if known is not None else self._now_us()
        )
        if known is not None and not says_the_same(known, true):
            self._forget_false_manifest(entry)
        return true, coded

    def _forget_false_manifest(self, entry: Entry) -> None:
        entry.manifest = None
        for node, key in entry.manifest_copies():
            self._book.report(node, key, Cause.MANIFEST, "it says other things than its segment")
        for node, key in entry.shards():
            self._book.acquit(node, key, Cause.LIE)

    async def load_manifest(self, entry: Entry) -> manifests.Manifest | None:
        """The newest manifest of a stripe that a node gives whole; None when there is none."""
        for node, key in entry.manifest_copies():
            if entry.manifest is not None and entry.manifest.epoch >= key.epoch:
                break
            if self._fleet.answers(node) and not self._book.is_bad(node, key):
                found = await self.read_manifest(node, key)
                if found is not None:
                    entry.manifest = found
                    break
        return entry.manifest

    async def read_manifest(self, node: str, key: Key) -> manifests.Manifest | None:
        try:
            data = await self._fleet.store(node).get(key)
        except errors.Transient:
            return None
        if data is None:
            self._book.report(node, key, Cause.MISSING, "the node does not give it")
            return None
        try:
            manifest = manifests.decode(data)
        except errors.Corrupt as error:
            self._book.report(node, key, Cause.MANIFEST, error.message)
            return None
        if manifest.key != key:
            self._book.report(node, key, Cause.FOREIGN, "it is the manifest of another stripe")
            return None
        return manifest

    # -- writing ---------------------------------------------------------------------------------------------

    async def write(self, segment: segments.Segment, geometry: stripes.Geometry) -> manifests.Manifest:
        """Code a segment and place it; returns once enough of it is proven. Raises Transient when too few nodes answer."""
        coded = await asyncio.to_thread(assembly.code, segment, geometry)
        placed = await self._write_shards(coded)
        manifest = coded.manifest(1, placed, self._now_us())
        await self.tell(manifest, sorted(set(placed.values())))
        return manifest

    async def _write_shards(self, coded: Coded) -> dict[int, str]:
        """Phase one. A node that fails is replaced by another as long as there is one."""
        free = self._fleet.up()
        wanted = stripes.place(coded.segment_hash, free, coded.geometry)
        placed: dict[int, str] = {}
        refused: list[errors.DiffKeeperError] = []
        while wanted:
            outcomes = await asyncio.gather(
                *(self._try_shard(coded, index, node) for index, node in wanted.items())
            )
            free = [node for node in free if node.name not in wanted.values()]
            again: dict[int, str] = {}
            for (index, node), error in zip(wanted.items(), outcomes, strict=True):
                if error is None:
                    placed[index] = node
                    continue
                refused.append(error)
                taken = [self._fleet.nodes[name].node for name in placed.values()]
                other = stripes.replacement(coded.segment_hash, free, taken)
                if other is not None:
                    free.remove(other)
                    again[index] = other.name
            wanted = again
        if len(placed) < quorum(coded.geometry):
            raise errors.Transient(
                f"only {len(placed)} of {coded.geometry.shards} shards of {coded.span.words()} could be placed"
                + (f" ({refused[0].message})" if refused else "")
                + "; the frames stay in their streams",
                reason="too-few-nodes",
                hint="dkctl nodes shows which nodes are away",
            )
        return placed

    async def _try_shard(self, coded: Coded, index: int, node: str) -> errors.DiffKeeperError | None:
        try:
            await self.put_shard(coded, index, 1, node)
        except errors.DiffKeeperError as error:
            return error
        return None

    async def put_shard(self, coded: Coded, index: int, epoch: int, node: str) -> Key:
        key, data = coded.shard(index, epoch)
        await self._fleet.put(node, key, data)
        return key

    async def tell(self, manifest: manifests.Manifest, nodes: Sequence[str]) -> list[str]:
        """Phase two: the mark, on every node given; those that have it now. Raises Transient when none took it."""
        data = manifests.encode(manifest)
        outcomes = await asyncio.gather(
            *(self._fleet.put(node, manifest.key, data) for node in nodes), return_exceptions=True
        )
        told: list[str] = []
        for node, outcome in zip(nodes, outcomes, strict=True):
            if outcome is None:
                told.append(node)
            elif not isinstance(outcome, errors.DiffKeeperError):
                raise outcome
        if not told:
            raise errors.Transient(
                f"no node took the manifest of {manifest.span.words()}",
                reason="too-few-nodes",
                hint="dkctl nodes",
            )
        self._catalogue.entries.setdefault(manifest.stripe, Entry(manifest.stripe)).manifest = manifest
        return told

    # -- removing --------------------------------------------------------------------------------------------

    async def drop(self, entry: Entry) -> None:
        """Remove a stripe that another has replaced, where its nodes answer.

        Shards first: a manifest without them says what they were, shards without one might be adopted.
        """
        for index in (*range(entry.stripe.geometry.shards), MANIFEST):
            await asyncio.gather(
                *(
                    self._fleet.remove(node, key)
                    for node, key in entry.copies(index)
                    if self._fleet.answers(node)
                )
            )
        self._book.settle(entry.stripe, self._fleet.answers)
        if not entry.where:
            self._catalogue.forget(entry.stripe)


def quorum(geometry: stripes.Geometry) -> int:
    """How many shards must stand before a stripe counts: enough to read it, and half of what it may lose beside."""
    return geometry.data + -(-geometry.parity // 2)


def says_the_same(one: manifests.Manifest, other: manifests.Manifest) -> bool:
    """Whether two manifests agree on what the segment and its shards are; where they stand may differ."""
    return (one.segment_hash, one.segment_bytes, one.digests, one.span) == (
        other.segment_hash,
        other.segment_bytes,
        other.digests,
        other.span,
    )


def _distinct(shards: Sequence[Shard]) -> int:
    return len({shard.header.index for shard in shards})
