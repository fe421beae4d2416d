"""Puts a volume's capture together for an order: spool, publisher, where to go on, framer, observer."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from diffkeeper.domain import errors, frames, volumes
from diffkeeper.log.event_log import EventLog
from diffkeeper_capture import resuming, syncers, volume_recovery
from diffkeeper_capture.durability import Durability
from diffkeeper_capture.framer import Framer, SystemClock
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.publisher import Publisher
from diffkeeper_capture.shipper import Shipper
from diffkeeper_capture.spool import Spool
from diffkeeper_capture.staged import Staged
from diffkeeper_capture.tree_keeper import TreeKeeper
from diffkeeper_capture.volume_capture import Parts
from diffkeeper_capture.volume_order import Order, VolumeFiles


@dataclass(frozen=True, slots=True)
class Builder:
    log: EventLog
    spool_bytes: int
    # Of one thread, for packing full frames beside the capture.
    packer: Executor

    async def build(
        self,
        order: Order,
        files: VolumeFiles,
        *,
        sole_source: bool,
        resumable: volume_recovery.Resumable | None = None,
        staged: Staged | None = None,
    ) -> Parts:
        """Raises Fenced, Corrupt, Misconfigured or Transient, and then holds nothing open, nor is anything staged left."""
        _check(order)
        spool = staged.take_spool() if staged is not None else None
        try:
            if spool is None:
                spool = await asyncio.to_thread(
                    Spool.open, files.spool, self.spool_bytes, make_syncer=syncers.best
                )
            if resumable is not None:
                resumable = await asyncio.to_thread(volume_recovery.take_back, order, spool, resumable)
            return await self._build(order, files, spool, sole_source, resumable, staged)
        except BaseException:
            if spool is not None:
                spool.close()
            raise
        finally:
            if staged is not None:
                staged.close()

    async def _build(
        self,
        order: Order,
        files: VolumeFiles,
        spool: Spool,
        sole_source: bool,
        resumable: volume_recovery.Resumable | None,
        staged: Staged | None,
    ) -> Parts:
        site = self.log.site
        origin = volumes.Origin(order.volume, site)
        durability = Durability(order.volume, site, order.epoch, order.parent, order.replicas)
        publisher = Publisher(
            self.log, origin, spool, epoch=order.epoch, parent=order.parent, on_stored=durability.note_stored
        )
        await self.log.create_origin(origin)
        tip = await publisher.recover()
        start = await volume_recovery.find_start(order, files, spool, tip, resumable, staged)
        if spool.durable is not None and spool.durable.epoch == order.epoch:
            durability.note_spooled(spool.durable)
        if publisher.stored is not None:
            durability.note_stored(publisher.stored)
        try:
            return self._put_together(order, spool, publisher, durability, start, sole_source)
        except BaseException:
            start.tree.close()
            raise

    def _put_together(
        self,
        order: Order,
        spool: Spool,
        publisher: Publisher,
        durability: Durability,
        start: volume_recovery.Start,
        sole_source: bool,
    ) -> Parts:
        site = self.log.site
        framer = Framer(
            volume=order.volume,
            origin=site,
            epoch=order.epoch,
            tip=start.tip,
            clock=SystemClock(),
            last_stamp=start.stamp,
            in_base=not start.based,
            packer=self.packer,
        )
        if sole_source:
            framer.set_floor(frames.Fidelity.SCAN)
        observer = Observer(order.path, framer, tree=start.tree, sole_source=sole_source)
        if start.mark is not None:
            framer.gaps = start.mark.gaps
            resuming.recall(observer, start.memories)
        shipper = Shipper(spool, publisher, durability)
        keeper = TreeKeeper(start.tree, shipper)
        return Parts(start, framer, observer, spool, publisher, durability, shipper, keeper, self.log)


def _check(order: Order) -> None:
    if order.epoch <= order.parent.position.epoch:
        raise errors.Refused(
            f"epoch {order.epoch} cannot follow {order.parent.position}",
            reason="epoch-not-after-parent",
            hint="each reign has an epoch of its own, greater than all before",
        )
