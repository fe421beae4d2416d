"""One volume under capture: records → observer → framer → spool → stream, and the receipts on the way back.

``run`` is the role: everything a capture does lives in its task group, and after it no task is left. A
failure of any part ends the volume (state ``fenced`` or ``failed``), never the agent; calls that wait at its
gate go on waiting, because nothing that is true can be told them. Records are handled in the event loop's
own thread; only reading, hashing and fsync are given to threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from diffkeeper import heap
from diffkeeper.domain import clocks, errors, frames, leases, trees
from diffkeeper.domain.receipts import Level, Receipt
from diffkeeper.leases.lease_store import LeaseStore
from diffkeeper.log.event_log import EventLog
from diffkeeper_capture import records, write_lanes
from diffkeeper_capture.drain_loop import DrainLoop
from diffkeeper_capture.durability import Durability
from diffkeeper_capture.framer import NO_FLAGS, Framer
from diffkeeper_capture.gate import Call, Gate
from diffkeeper_capture.gate_socket import Program
from diffkeeper_capture.held_writes import Held, HeldWrites
from diffkeeper_capture.lease_keeper import LeaseKeeper
from diffkeeper_capture.observer import Observer
from diffkeeper_capture.patient_barriers import PatientBarriers
from diffkeeper_capture.publisher import Publisher
from diffkeeper_capture.resume_journal import ResumeJournal
from diffkeeper_capture.resume_marks import Marks
from diffkeeper_capture.resuming import Recollection
from diffkeeper_capture.shipper import Shipper
from diffkeeper_capture.source_sampler import SourceSampler
from diffkeeper_capture.spool import Spool
from diffkeeper_capture.stalls import Facts, StallWatch
from diffkeeper_capture.tree_keeper import TreeKeeper
from diffkeeper_capture.volume_order import Order, VolumeFiles
from diffkeeper_capture.volume_recovery import Beginning, Start
from diffkeeper_capture.watch_probe import WatchProbe
from diffkeeper_capture.working_tree import WorkingTree

ROOT_CHECK_S = 1.0
# A tree of which much changed is kept this soon after the time before.
LARGE_CHECK_S = 0.1
# A first sight pauses while this much of it is not in the stream yet.
BASE_AHEAD_BYTES = 64 * 1024 * 1024
# After a loss, files are re-read only when the ring has held for so long (a barrier does not wait for that):
# reading while records are lost makes more of them be lost.
CALM_S = 0.5
# Marks of sync calls alone, which nobody waits for, are framed this late.
MARKS_LINGER_S = 1.0
# The stream is said to lag behind from here on, and frames are made larger.
BEHIND_BYTES = 1024 * 1024
# Each frame costs an fsync at every holder. While as many as these wait for theirs, frames get larger, not more.
FEW_FRAMES = 2

_log = structlog.get_logger("capture")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a capture is made of; built by ``volume_builder``, closed by ``VolumeCapture.close``."""

    start: Start
    framer: Framer
    observer: Observer
    spool: Spool
    publisher: Publisher
    durability: Durability
    shipper: Shipper
    keeper: TreeKeeper
    log: EventLog


class VolumeCapture:
    """``state``: scanning, capturing, fenced, failed or released."""

    def __init__(
        self,
        order: Order,
        files: VolumeFiles,
        parts: Parts,
        probe: DrainLoop | WatchProbe,
        *,
        degrade_after_s: float,
    ) -> None:
        self.order = order
        self.files = files
        self.state = "scanning"
        self.error: errors.DiffKeeperError | None = None
        self.program: Program | None = None
        # Where another site may take over by itself: the right to reign, which is renewed as long as frames move.
        self.lease: LeaseKeeper | None = None
        self.durability = parts.durability
        self.framer = parts.framer
        self.observer = parts.observer
        self.spool = parts.spool
        self.publisher = parts.publisher
        self.shipper = parts.shipper
        self.progress: dict[str, Any] = {
            "files": 0,
            "bytes": 0,
            "files_total": 0,
            "bytes_total": 0,
            "done": False,
        }
        self.gate = Gate(
            order.volume,
            PatientBarriers(self),
            level=order.durability,
            policy=order.policy,
            degrade_after_s=degrade_after_s,
        )
        self.gap_open = False
        self.last_gap: dict[str, Any] | None = None
        self._is_taking = True
        self._is_closed = False
        self._observe: Callable[[records.Record, memoryview], None] = parts.observer.observe
        self._lane: write_lanes.Lane | None = None
        self._lost_at = 0.0
        self._broken = asyncio.Event()
        self._breakage: Exception | None = None
        self._start = parts.start
        self._event_log = parts.log
        # Exactly one of the two.
        self._drain = probe if isinstance(probe, DrainLoop) else None
        self._watch = probe if isinstance(probe, WatchProbe) else None
        # Comparisons made for the portable probe, one after the other.
        self._comparing = asyncio.Lock()
        # Set while what the log says is known to be what the directory is.
        self._whole = asyncio.Event()
        self._keeper = parts.keeper
        # Set when much of the tree is in memory alone.
        self._is_large = asyncio.Event()
        self._slot = -1
        self._marks: Marks | None = None
        self._held: HeldWrites | None = None
        self._sampler = SourceSampler(parts.observer)
        self.stalls = StallWatch()

    def hold_writes(self, slot: int, kernel: Held) -> None:
        """Programs behind the gate are stopped after writes that are durable by flag."""
        self._held = HeldWrites(slot, self.gate, kernel, self._catch_up)
        self.observer.on_held = self._held.arrive
        self._held.look()

    def look_for_held(self) -> None:
        if self._held is not None and self._is_taking:
            self._held.look()

    def watched_as(self, slot: int, *, is_kept: bool) -> None:
        """The exact probe watches the directory under this slot, with a ring that a successor may go on with."""
        assert self._drain is not None, "the exact probe watches"
        self._slot = slot
        if self._start.mark is not None:
            self._drain.keep_for(slot, self._start.mark.at)
        else:
            self._drain.add(slot, self)
        journal = ResumeJournal(self.files.resume_journal)
        if self._start.mark is None:
            journal.break_off()
        if not is_kept:
            return
        self._marks = self.shipper.marks = Marks(
            self.order.volume, journal, Recollection(self.observer), self._drain, slot, self.framer
        )

    async def run(self) -> None:
        """Capture until cancelled, or until it cannot go on: then ``state`` and ``error`` say why."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.publisher.run(), name="publish")
                group.create_task(self.shipper.run(), name="spool")
                group.create_task(
                    self.shipper.follow_confirmations(self._event_log), name="hear confirmations"
                )
                group.create_task(self.gate.run(), name="gate")
                group.create_task(self._keep(), name="keep")
                group.create_task(self._fail_when_broken(), name="fail")
                if self._watch is not None:
                    group.create_task(self._collect(self._watch), name="watch")
                await self._begin()
                self._begin_marks()
                self._whole.set()
                self.state = "capturing"
        except* errors.DiffKeeperError as group_of_errors:
            self._end(_first(group_of_errors))
        except* Exception as group_of_errors:  # noqa: BLE001
            # A defect in one volume's capture must not take the others with it.
            _log.exception("capture failed", volume=self.order.volume)
            self._end(
                errors.DiffKeeperError(f"capture failed: {_first(group_of_errors)!r}", reason="internal")
            )

    def _begin_marks(self) -> None:
        if self._marks is not None and not self._marks.is_on:
            self._cut()
            self._marks.begin()

    async def _fail_when_broken(self) -> None:
        await self._broken.wait()
        assert self._breakage is not None, "it is set before"
        # Where the directory itself was moved away, that is what people must hear of, not what followed.
        await asyncio.to_thread(self.observer.reader.check_root)
        raise self._breakage

    def _break(self, error: Exception) -> None:
        """End the volume for a reason met while records were handled; the loop that handles them goes on."""
        if self._breakage is None:
            self._breakage = error
            self._broken.set()
            self._stop_taking()

    def _stop_taking(self) -> None:
        """Records that still come are of no concern."""
        self._is_taking = False
        self._observe = _ignore
        if self._lane is not None:
            self._lane.forget()
            self._lane.empty()

    def _end(self, error: BaseException) -> None:
        assert isinstance(error, errors.DiffKeeperError), "only ours come here"
        self.state = "fenced" if isinstance(error, errors.Fenced) else "failed"
        self._stop_taking()
        self.error = error
        self._whole.set()  # whoever waits for it finds the error
        self.durability.fail(error)
        _log.error(
            error.message, volume=self.order.volume, state=self.state, reason=error.reason, hint=error.hint
        )

    async def _begin(self) -> None:
        match self._start.beginning:
            case Beginning.TRUST:
                self.progress["done"] = True
                return
            case Beginning.FIRST_SIGHT:
                await self._first_sight()
                return
            case Beginning.RESUME:
                await self._resume()
                return
            case Beginning.COMPARE:
                cause = ""
            case Beginning.RESTART:
                cause = "agent-restart"
                self._note_gap(cause)
        async with self._comparing:
            for _ in self.observer.rescan(cause):
                await self._breathe()
            await self._settle()
        self.gap_open = False
        if self._start.based:
            self.progress["done"] = True
        else:
            self._end_base()

    async def _resume(self) -> None:
        """Go on where a killed predecessor left off: what it had not kept waits in the ring."""
        mark = self._start.mark
        assert mark is not None and self._marks is not None and self._drain is not None, "so it was found"
        self.progress["done"] = True
        self._marks.go_on(mark)
        await self._drain.join(self._slot, self, mark.lost)
        _log.info(
            "went on where the agent before was killed",
            volume=self.order.volume,
            position=str(mark.tip.position),
        )

    async def _first_sight(self) -> None:
        scan = self.observer.scan_base() if self._watch is None else self._watch.scan_base(self.observer)
        async with self._comparing:
            for progress in scan:
                self.progress = {**asdict(progress), "done": False}
                await self._breathe()
            await self._settle()
        self._end_base()
        heap.trim()

    async def _collect(self, watch: WatchProbe) -> None:
        """The portable probe's loop: wait for changes, compare, ship."""
        await self._until_whole()
        while True:
            await watch.changed_paths()
            async with self._comparing:
                for _ in watch.collect(self.observer):
                    await self._breathe()
            self._cut()

    def _end_base(self) -> None:
        self._cut(frames.Flag.BASE_END)
        self.progress["done"] = True
        self.files.write_reign(self.order, based=True)

    async def _breathe(self) -> None:
        """Between two steps of a comparison: ship, let others work, stay close to the stream."""
        self._ship(self.framer.take())
        with contextlib.suppress(errors.Transient):  # tried again, and told, by ``_keep``
            self._keeper.feed()
            if self._keeper.is_large and not self._whole.is_set() and self._save_amid():
                await asyncio.to_thread(self._keeper.sync)
        await asyncio.sleep(0)
        while self.shipper.is_choked or self.publisher.behind_bytes > BASE_AHEAD_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _settle(self) -> None:
        while not self.observer.settle(self._catch_up()):
            self._cut()
            await self._breathe()

    async def _keep(self) -> None:
        while True:
            await self._until_keeping()
            await asyncio.to_thread(self.observer.reader.check_root)
            self._settle_gap()
            self._ship_stores()
            try:
                await self._keep_tree()
            except errors.Transient as error:
                # The spool keeps what leads to the tree that is kept, so nothing but room depends on it.
                _log.warning(
                    "the tree could not be kept; tried again", reason=error.reason, error=error.message
                )

    async def _until_keeping(self) -> None:
        """About a second, less when much of the tree waits to be kept."""
        await asyncio.sleep(LARGE_CHECK_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ROOT_CHECK_S - LARGE_CHECK_S):
                await self._is_large.wait()
        self._is_large.clear()

    async def _keep_tree(self) -> None:
        if self.is_ended:
            return  # a thread reads it
        while self._keeper.feed():  # noqa: ASYNC110
            await asyncio.sleep(0)
        since = self.spool.bytes_after(self._keeper.saved)
        if self._whole.is_set() and self._keeper.is_due(self.framer.tip.position, since) and self.save():
            await asyncio.to_thread(self._keeper.sync)

    def _ship_stores(self) -> None:
        """What was stored through mappings, so that a program that never syncs is not behind for ever."""
        if self._is_taking and self._whole.is_set() and self.observer.mapped:
            self.observer.log_stores()
            self._cut()

    @property
    def is_exact(self) -> bool:
        return self._drain is not None

    @property
    def lost_records(self) -> int:
        return 0 if self._drain is None else self._drain.lost_records

    @property
    def unread_age_us(self) -> int:
        """How long ago the oldest call may have returned that nobody has looked at, in this volume or another."""
        return 0 if self._drain is None else self._drain.unread_age_us

    def use_lane(self, lane: write_lanes.Lane) -> None:
        self._lane = lane
        self.framer.use_lane(lane)
        self.observer.use_lane(lane)
        lane.on_full = self._absorb

    def _absorb(self) -> None:
        try:
            self.framer.absorb()
        except Exception as error:  # noqa: BLE001
            self._break(error)

    def feed(self, record: records.Record, payload: memoryview) -> None:
        # For every write of the machine's volumes: nothing here but the call.
        try:
            self._observe(record, payload)
        except Exception as error:  # noqa: BLE001
            self._break(error)

    def drained(self, empty_ns: int | None) -> float:
        if not self._is_taking:
            return math.inf
        try:
            return self._drained(empty_ns)
        except Exception as error:  # noqa: BLE001
            self._break(error)
            return math.inf

    def _drained(self, empty_ns: int | None) -> float:
        settled = True
        if time.monotonic() - self._lost_at < CALM_S:
            settled = not self.observer.doubts  # looked at again soon
        elif empty_ns is not None and self._whole.is_set():
            settled = self.observer.settle(empty_ns)
            if settled:
                self._settle_gap()
        early_us = self._due_us() - self.framer.oldest_pending_age()
        # While full frames are on their way the next may fill up too.
        if self.framer.pending and not self.framer.is_packing and early_us <= 0:
            self._cut()
        else:
            if self._marks is not None:
                self._marks.close_group(is_due=early_us <= 0)
            self._ship(self.framer.take())
        if self._marks is not None and not self.framer.pending and self.shipper.is_idle:
            self._marks.idle()
        if self._keeper.is_large:
            self._is_large.set()
        if not settled or self.framer.is_packing:
            return 0.0
        if not self.framer.pending:
            return math.inf
        if not self.framer.changes_something:
            return max(0.0, early_us / 1e6)
        # A frame may be due earlier than it seems now: when those before it are safe.
        return min(max(0.0, early_us / 1e6), self._drain.pace.linger_s if self._drain is not None else 0.0)

    def _due_us(self) -> float:
        """How old the oldest delta of an open frame may become before it is cut."""
        if self._drain is None:
            return 0
        if not self.framer.changes_something:
            return MARKS_LINGER_S * 1e6
        unsafe = self.framer.tip.position.sequence - self.durability.safe().sequence
        pace = self._drain.pace
        linger_s = pace.linger_s if unsafe < FEW_FRAMES else pace.linger_most_s
        return linger_s * 1e6

    def lost(self, inodes: frozenset[int] | None) -> None:
        if not self._is_taking:
            return
        self._lost_at = time.monotonic()
        detail = "everywhere" if inodes is None else f"{len(inodes)} files"
        self._note_gap("lost-records")
        self.observer.lose(inodes or (), everywhere=inodes is None, detail=detail)

    @property
    def is_choked(self) -> bool:
        return self.shipper.is_choked

    @property
    def is_behind(self) -> bool:
        return self.publisher.behind_bytes > BEHIND_BYTES

    def _catch_up(self) -> int:
        return self._drain.catch_up() if self._drain is not None else time.monotonic_ns()

    def _ship(self, sealed: Sequence[frames.Frame]) -> None:
        if sealed:
            self.shipper.ship(sealed)

    def _cut(self, flags: frames.Flag = NO_FLAGS, successor: str = "") -> None:
        """Everything observed so far, in frames that are shipped."""
        sealed = self.framer.cut(flags, successor)
        if self._marks is not None:
            self._marks.closed()
        self._ship(sealed)

    def needed_from(self) -> int:
        assert self._drain is not None, "a loop asks"
        return (
            self._marks.at
            if self._marks is not None and self._marks.is_on
            else self._drain.position_of(self._slot)
        )

    def _note_gap(self, cause: str) -> None:
        self.gap_open = True
        self.last_gap = {
            "cause": cause,
            "at_us": time.time_ns() // 1000,
            "position": str(self.framer.tip.position),
        }

    def _settle_gap(self) -> None:
        if self.gap_open and self._whole.is_set() and not self.observer.doubts:
            self.gap_open = False

    async def cut_barrier(self, calls: Sequence[Call]) -> frames.Tip:
        """Everything that had returned before this call, in frames on their way; or raises the end."""
        await self._until_whole()
        if self._watch is not None:
            async with self._comparing:
                for _ in self._watch.barrier(self.observer):
                    await self._breathe()
        while not self.observer.before_barrier(self._catch_up()):
            self._cut()
            await asyncio.sleep(0)
        self._cut(frames.Flag.BARRIER)
        self.shipper.sync_soon()
        return self.framer.tip

    async def reach(self, tip: frames.Tip, level: Level) -> Receipt:
        return await self.durability.reach(tip, level)

    async def sync(self, level: Level, timeout_s: float) -> Receipt:
        """A receipt for everything written so far; raises TimedOut, or what ended the capture."""
        try:
            async with asyncio.timeout(timeout_s):
                tip = await self.cut_barrier(())
                return await self.durability.reach(tip, level)
        except TimeoutError as error:
            raise errors.TimedOut(
                f"level {level.word} was not reached within {timeout_s:g} s; nothing written is lost",
                reason="level-unmet",
                hint="dkctl status shows who is behind",
                stored=str(self.durability.stored),
                confirmed=str(self.durability.remote()),
            ) from error

    def look_for_stalls(self, *, is_probe_silent: bool) -> None:
        """About once a second: is anything behind that does not move?"""
        if self.state != "capturing" or not self._is_taking:
            self.stalls.alarms.clear()
            return
        # What is compared or settled just now is not in the log yet, and known not to be.
        is_settled = self._whole.is_set() and not self.observer.is_doubtful
        captured_us = clocks.to_micros(self.framer.stamp)
        framer, drain = self.framer, self._drain
        facts = Facts(
            produced=0 if drain is None else drain.produced,
            consumed=0 if drain is None else drain.position_of(self._slot),
            is_probe_silent=is_probe_silent and drain is not None,
            source_us=self._sampler.newest_unseen_us(captured_us) if is_settled else None,
            pending_s=framer.oldest_pending_age() / 1e6
            if framer.pending and framer.changes_something
            else 0.0,
            captured=framer.tip.position,
            stored=self.durability.stored,
            confirmed=self.durability.by_site(),
        )
        before = {(alarm.reason, alarm.site) for alarm in self.stalls.alarms}
        for alarm in self.stalls.look(facts, time.time_ns() // 1000):
            if (alarm.reason, alarm.site) not in before:
                _log.error(
                    alarm.message, volume=self.order.volume, alarm=alarm.reason, since_us=alarm.since_us
                )

    async def tell(self, level: Level, timeout_s: float) -> dict[str, Any]:
        """How safe everything written so far is, after waiting for the level at most so long."""
        tip = await self.cut_barrier(())
        is_safe = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.durability.reach(tip, level)
        except TimeoutError:
            is_safe = self.durability.meets(tip.position, level)
        receipt = self.durability.receipt(tip, level).to_dict()
        return {"safe": is_safe, **receipt, "since_us": receipt["since_us"] if is_safe else None}

    async def _until_whole(self) -> None:
        await self._whole.wait()
        if self.error is not None:
            raise self.error
        if self.state == "released":
            raise errors.Refused(f"volume {self.order.volume} is not captured any more", reason="released")

    def tree_state(self) -> trees.TreeState:
        """The tree at the end of the log. The caller has cut, so that no delta waits in an open frame."""
        assert not self.framer.pending and not self.framer.is_packing, "the tree would be ahead of the log"
        tip = self.framer.tip
        return self.observer.state(self.order.volume, tip.position, tip.hash, self.framer.stamp)

    def save(self) -> bool:
        """Keep the tree as it is now, unless something has to be compared first or waits for the spool; whether it
        was.
        """
        if not self.observer.settle(self._catch_up()):
            return False
        self._cut()
        tip = self.framer.tip
        if self.shipper.is_choked or self.spool.last != tip.position or self.framer.is_packing:
            return False
        self._commit(tip)
        if self._marks is not None:
            self._marks.begin_anew()
        return True

    def _save_amid(self) -> bool:
        """Keep the tree as far as a comparison has come, so that memory does not grow with the volume. Whoever starts
        from there compares again.
        """
        if self.framer.tip.position == self._keeper.saved and not self.framer.pending:
            return False
        self._cut()
        tip = self.framer.tip
        if self.shipper.is_choked or self.spool.last != tip.position:
            return False
        self._commit(tip)
        return True

    def _commit(self, tip: frames.Tip) -> None:
        prints = self.observer.take_prints()
        try:
            self._keeper.commit(tip.position, tip.hash, self.framer.stamp, prints)
        except BaseException:
            self.observer.contents.touched.update(prints)
            raise
        # A successor finds these in the tree.
        self.observer.shadow.touched.clear()

    @property
    def tree(self) -> WorkingTree:
        return self._start.tree

    def commit_end(self) -> None:
        """After the epoch's last frame: the tree's file has all of it. In a thread; nobody else uses the tree any more."""
        assert self.is_ended and not self.framer.pending, "the tree would be ahead of the log"
        self._commit(self.framer.tip)

    @property
    def is_ended(self) -> bool:
        return self.state == "released"

    def end_epoch(self, flags: frames.Flag, successor: str) -> None:
        """Cut the last frame of the reign; nothing is captured after it. The caller has drained."""
        self._cut(flags, successor)
        self.shipper.sync_soon()
        self.state = "released"
        self._stop_taking()

    def keep_lease(self, store: LeaseStore, ttl_ms: int) -> Coroutine[None, None, None]:
        """From now on reign only as long as the lease is held; what is returned keeps it, until cancelled."""
        order = self.order
        lease = leases.Lease(order.volume, order.epoch, self.durability.site, ttl_ms)
        keeper = LeaseKeeper(store, lease, self._stored_behind, self.durability.note_lease)
        self.lease = keeper
        self.durability.may_acknowledge = lambda: keeper.held
        return self._keep_lease(keeper)

    async def _keep_lease(self, keeper: LeaseKeeper) -> None:
        try:
            await keeper.run()
        except Exception as error:  # noqa: BLE001
            # Lost to another site, or a defect: either way nobody renews it any more.
            self._break(error)

    def reign_without_lease(self) -> None:
        self.lease = None
        self.durability.may_acknowledge = lambda: True
        self.durability.note_lease()

    def _stored_behind(self) -> tuple[int, bool]:
        stored = self.durability.stored
        return stored.sequence, self.durability.spooled > stored

    def close(self) -> None:
        """May be called again, as by who begins anew and fails: descriptors may be somebody else's by then."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._watch is not None:
            self._watch.close()
        if self._marks is not None:
            self._marks.close()
        if self._held is not None:
            self._held.close()
        self.observer.close()
        self._keeper.close()
        self.spool.close()


def _ignore(_record: records.Record, _payload: memoryview) -> None:
    pass


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
