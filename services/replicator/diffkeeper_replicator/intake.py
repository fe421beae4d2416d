"""From the stream into the journal: reads the chain, keeps what follows, confirms what is on disk.

Many frames share one fsync: while the journal's thread writes one group, the next gathers. A frame is
confirmed once its hash, its place in the chain and its body were checked and the journal holds it durably.
Nothing of an epoch older than the promised one is taken by itself or confirmed; a catch-up may still ask for
it (``reach``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any

from diffkeeper.domain import errors, frames, positions, volumes
from diffkeeper.log import event_log
from diffkeeper_replicator import chains, safe_paths
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.replayer import Kept, Replayer
from diffkeeper_replicator.subscriber import Subscriber

CONFIRM_EVERY_S = 1.0
RETRY_S = 1.0
FULL_DISK_RETRY_S = 0.5
# Read from the stream and not yet in the journal; then the reader waits.
WAITING_MAX_BYTES = 32 * 1024 * 1024
GROUP_MAX_BYTES = 16 * 1024 * 1024


class Intake:
    """One volume's. ``run`` ends only by being cancelled; then ``settle`` waits for the journal's thread."""

    def __init__(
        self,
        subscriber: Subscriber,
        log: event_log.EventLog,
        journal: Journal,
        reopen: Callable[[], Journal],
        replayer: Replayer,
        now_us: Callable[[], int],
    ) -> None:
        self._subscriber = subscriber
        self._log = log
        self._reopen_journal = reopen
        self._replayer = replayer
        self._now_us = now_us
        self._thread = ThreadPoolExecutor(1, f"journal-{subscriber.volume}")
        self.journal = journal
        # Held while a group is on its way into the journal.
        self._group_lock = asyncio.Lock()
        self.chain: list[chains.Link] = []
        # Invariant: nothing of an older epoch is confirmed.
        self.promised = 0
        # Up to here frames of older epochs than the promised one are still taken.
        self.reach = positions.START
        # The last frame accepted, on its way into the journal.
        self.tip = self.journal.tip
        self._durable_origin = self._origin_of_tip()
        self.seen, self.seen_stamp = self.tip.position, 0
        self._reading_trouble: errors.DiffKeeperError | None = None
        self._keeping_trouble: errors.DiffKeeperError | None = None
        # Why nothing is read though nothing is wrong; empty while reading.
        self.waiting = ""
        self._heard_at = 0.0
        self._incoming: list[frames.Frame] = []
        self._incoming_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._changed = asyncio.Event()
        # Set whenever the journal has grown.
        self.grown = asyncio.Event()

    @property
    def trouble(self) -> errors.DiffKeeperError | None:
        """Why frames are not taken; cleared by the next one that is."""
        return self._keeping_trouble or self._reading_trouble

    def change(self) -> None:
        """Chain, promise or reach are others now: decide anew what to read."""
        self._reading_trouble = self._keeping_trouble = None
        self._changed.set()

    async def promise(self, epoch: int) -> frames.Tip:
        """From now on nothing of an older epoch is confirmed; gives what the journal holds."""
        self.promised = max(self.promised, epoch)
        async with self._group_lock:
            self._forget_incoming()
        self.change()
        return self.journal.tip

    async def furthest(self) -> positions.Position:
        """The last position of the chain in this site's streams, at least the journal's."""
        self.chain = await self._subscriber.resolve(self.chain)
        reading = chains.next_reading(self.tip, self.chain)
        last = await self._subscriber.last(reading.link) if reading is not None else None
        if reading is None or last is None or last.position.epoch != reading.link.epoch:
            return self.tip.position
        end = last.position if reading.end is None else min(last.position, reading.end.position)
        return max(self.tip.position, end)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(), name="read")
            group.create_task(self._keep(), name="keep")
            group.create_task(self._repeat(), name="repeat")

    async def settle(self) -> None:
        """After ``run`` was cancelled: the journal is at rest, and what had not reached it is forgotten."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)
        self._forget_incoming()

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """Something with the journal, between its appends."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown()
        self.journal.close()

    # -- reading ---------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            self._changed.clear()
            await _first_of(self._read_until_trouble(), self._changed.wait())

    async def _read_until_trouble(self) -> None:
        try:
            while True:
                await self._read_link()
        except errors.DiffKeeperError as error:
            if isinstance(error, errors.NotFound):
                self.waiting = error.message
            else:
                self._reading_trouble = error
            await asyncio.sleep(RETRY_S)

    async def _read_link(self) -> None:
        """Read one link until it has no more frames for us."""
        await self._subscriber.prepare(self.chain)
        self.chain = await self._subscriber.resolve(self.chain)
        reading = chains.next_reading(self.tip, self.chain)
        if reading is None:
            await self._wait("no chain is wanted")
            return
        if reading.end_unknown:
            end = await self._handed_over(reading.link)
            if end is None or end == self.tip:
                await self._wait(
                    f"where epoch {reading.link.epoch} at {reading.link.site} ends is not known yet"
                )
                return
            reading = chains.Reading(reading.index, reading.link, end, False)
        if self._is_held(reading, self.tip.position.next()):
            await self._wait(f"nothing more of epoch {reading.link.epoch} is taken")
            return
        first = await self._subscriber.place_after(reading.link, self.tip.position)
        self.waiting, before = "", self.tip
        # The message before is read too: it must be the frame we have.
        async with aclosing(self._subscriber.read(reading.link, max(1, first - 1))) as found:
            async for frame in found:
                if not await self._consider(reading, frame):
                    break
        if reading.end is None or self.tip == before:
            await self._wait(
                f"the stream of {reading.link.site} has no more frames of epoch {reading.link.epoch}"
            )

    async def _consider(self, reading: chains.Reading, frame: frames.Frame) -> bool:
        """Take a frame or not; False when this link is done with."""
        judgement = chains.judge(self._subscriber.volume, self.tip, reading, frame)
        if isinstance(judgement, chains.Over):
            return False
        self._heard_at = asyncio.get_running_loop().time()
        if isinstance(judgement, chains.Seen):
            await self._compare(frame)
        elif isinstance(judgement, chains.Take):
            self._see(frame)
            if self._is_held(reading, frame.position):
                return False
            await self._take(frame)
        self._reading_trouble = None
        return reading.end is None or self.tip != reading.end

    def _is_held(self, reading: chains.Reading, position: positions.Position) -> bool:
        """A reign older than the promise is taken as far as somebody asked for, or as the chain says that it went: the
        promise is about what nobody has decided on yet.
        """
        settled = self.reach if reading.end is None else max(self.reach, reading.end.position)
        return self._replayer.is_log_bad or (reading.link.epoch < self.promised and position > settled)

    async def _take(self, frame: frames.Frame) -> None:
        while self._incoming_bytes > WAITING_MAX_BYTES:
            self._room.clear()
            await self._room.wait()
        self._incoming.append(frame)
        self._incoming_bytes += len(frame.wire)
        self.tip = frames.Tip(frame.position, frame.hash)
        self._arrived.set()

    async def _compare(self, frame: frames.Frame) -> None:
        """A frame from the stream that is not news must be the one we hold: brokers can roll back."""
        while self._incoming:
            self.grown.clear()
            await self.grown.wait()
        try:
            held = await asyncio.to_thread(self.journal.read, frame.position)
        except errors.NotFound as error:
            raise chains.fork(frame) from error
        if held.hash != frame.hash:
            raise chains.fork(frame)

    async def _handed_over(self, link: chains.Link) -> frames.Tip | None:
        """The end of a reign by its own word."""
        last = await self._subscriber.last(link)
        if last is None or frames.Flag.HANDOVER not in last.header.flags or last.position.epoch != link.epoch:
            return None
        return frames.Tip(last.position, last.hash)

    async def _wait(self, why: str) -> None:
        self.waiting = why
        await asyncio.sleep(RETRY_S)

    def _see(self, frame: frames.Frame) -> None:
        if frame.position > self.seen:
            self.seen, self.seen_stamp = frame.position, frame.header.first

    # -- keeping ---------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._incoming:
                await self._keep_group()

    async def _keep_group(self) -> None:
        refused: errors.Corrupt | None
        try:
            async with self._group_lock:
                group = _group(self._incoming)
                kept, refused = await self.in_thread(lambda: self._journal_group(group))
                del self._incoming[: len(kept)]
        except errors.Transient as error:
            self._keeping_trouble = error
            await asyncio.sleep(FULL_DISK_RETRY_S)
            return
        except errors.Corrupt as error:
            kept, refused = [], error
        self._incoming_bytes -= sum(len(frame.wire) for frame, _ in kept)
        self._room.set()
        if kept:
            self._keeping_trouble = None
            self._durable_origin = kept[-1][0].header.origin
            self._replayer.deliver(kept)
            self.grown.set()
            await self._confirm()
        if refused is not None:
            await self._begin_anew(refused)

    def _journal_group(self, group: list[frames.Frame]) -> tuple[list[Kept], errors.Corrupt | None]:
        """In the journal's thread: check the bodies, keep those before the first bad one."""
        kept: list[Kept] = []
        refused: errors.Corrupt | None = None
        for frame in group:
            try:
                columns = frame.columns()
                if len(columns) != frame.header.count:
                    raise errors.Corrupt(
                        f"frame {frame.position} holds {len(columns)} deltas and its header says "
                        f"{frame.header.count}; it was not accepted",
                        reason="malformed-body",
                        hint="fetch the frame again from another holder",
                    )
                kept.append((frame, columns))
            except errors.Corrupt as error:
                refused = error
                break
        self.journal.append([frame for frame, _ in kept])
        return kept, refused

    async def _begin_anew(self, error: errors.Corrupt) -> None:
        """Forget what is not on disk; after a pause open a poisoned journal again, and read from its tip."""
        self._keeping_trouble = error
        async with self._group_lock:
            self._forget_incoming()
        await asyncio.sleep(RETRY_S)
        async with self._group_lock:
            if self.journal.poisoned:
                await self._reopen()
            self._forget_incoming()
        self._changed.set()

    async def _reopen(self) -> None:
        self.journal.close()
        try:
            self.journal = await self.in_thread(self._reopen_journal)
        except errors.DiffKeeperError as error:
            # Still poisoned: the next group fails again, and this is tried again.
            self._keeping_trouble = error
        except OSError as error:
            self._keeping_trouble = safe_paths.disk_error(error, "opening the journal")

    def _forget_incoming(self) -> None:
        self._incoming.clear()
        self._incoming_bytes = 0
        self._room.set()
        self.grown.set()
        self.tip = self.journal.tip
        self._durable_origin = self._origin_of_tip()

    # -- confirming ------------------------------------------------------------------------------------------

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(CONFIRM_EVERY_S)
            await self._confirm()
            if asyncio.get_running_loop().time() - self._heard_at > 2 * CONFIRM_EVERY_S:
                await self._look()

    async def _confirm(self) -> None:
        durable = self.journal.tip
        origin = self._durable_origin
        reign = self.chain[-1] if self.chain else None
        if reign is not None and reign.parent == durable:
            # A new reign begins exactly here and has written nothing yet: its writer must learn that we
            # stand with it, although the frame is of the reign before.
            origin = reign.site
        elif durable.position.epoch < max(1, self.promised):
            return
        if durable.position.epoch < 1 or origin == self._log.site:
            return
        said = event_log.Confirmation(
            self._log.site,
            durable.position,
            durable.hash,
            min(self._replayer.applied.position, durable.position),
            self._now_us(),
        )
        # Lossy by its contract: it is said again in a second.
        with suppress(errors.Transient):
            await self._log.confirm(volumes.Origin(self._subscriber.volume, origin), said)

    async def _look(self) -> None:
        """How far the stream is, asked of the stream: a reader that hears nothing may be the one that is
        broken.
        """
        with suppress(errors.DiffKeeperError):
            reading = chains.next_reading(self.tip, self.chain)
            last = await self._subscriber.last(reading.link) if reading is not None else None
            if last is not None and (reading is None or reading.end is None):
                self._see(last)

    def _origin_of_tip(self) -> str:
        tip = self.journal.tip
        return "" if tip == frames.ORIGIN_TIP else self.journal.read(tip.position).header.origin


def _group(incoming: list[frames.Frame]) -> list[frames.Frame]:
    """As many frames as share one fsync."""
    size = 0
    for count, frame in enumerate(incoming):
        size += len(frame.wire)
        if size > GROUP_MAX_BYTES:
            return incoming[: max(1, count)]
    return list(incoming)


async def _first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Run all until one ends; the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
