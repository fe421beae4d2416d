"""One site's part in a shared volume as tasks: read what programs did here and what other sites said, bring the
directory up to it, publish what this site says.

The engine is one, and blocking: every call of it runs in a thread while ``_engine_lock`` is held. Whatever goes
wrong with one log stops that log and shows in the status; the others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import structlog

from diffkeeper.domain import errors, frames, shared_ops, volumes
from diffkeeper.log import event_log
from diffkeeper_replicator.merging_service import edit_history, merge_log, undoing, written
from diffkeeper_replicator.merging_service.publisher import Publisher
from diffkeeper_replicator.merging_service.shared_role import SharedRole
from diffkeeper_replicator.merging_service.site_engine import SiteEngine
from diffkeeper_replicator.merging_service.touched_paths import EVERYTHING, TouchedPaths
from diffkeeper_replicator.merging_service.written import Ranges

RETRY_S = 1.0
# A file that is in motion is looked at again after this.
AGAIN_S = 0.01
DISPLACED_LOOK_S = 0.5
# How long after something was taken in the others are told so, all of it at once.
SEEN_AFTER_S = 3.0
KEEP_TOUCHED_S = 60.0
# Without a captured log everything is looked at this often.
SCAN_S = 2.0

# How often more is read of the logs because the file was edited meanwhile.
UNDO_ROUNDS_MAX = 5

T = TypeVar("T")
_log = structlog.get_logger("merging")


class SharedVolume:
    def __init__(
        self, volume: str, own: Path, role: SharedRole, log: event_log.EventLog, now_us: Callable[[], int]
    ) -> None:
        self.volume = volume
        self.role = role
        self._own = own
        self._log = log
        self._now_us = now_us
        self._engine: SiteEngine | None = None
        self._engine_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._publish = asyncio.Event()
        self._touched = TouchedPaths(own / "touched", role.member)
        self._capture_heard = False
        # Paths that programs touched, as far as nobody has looked there yet; steps that changed nothing, in a row.
        self._heard: dict[bytes, Ranges] = {}
        self._in_vain = 0
        # What stands in the way, by whose log (a site, or "" for the directory).
        self.troubles: dict[str, errors.DiffKeeperError] = {}
        self._seen_due = 0.0
        self._told: dict[str, Any] = {}
        self._publisher = Publisher(volumes.Origin(volume, log.site), log)

    # -- running ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            await self._open()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._step_for_ever(), name=f"merge {self.volume}")
                group.create_task(self._publish_for_ever(), name=f"publish {self.volume}")
                group.create_task(self._watch_for_ever(), name=f"watch {self.volume}")
                for site in self.role.sites:
                    if site != self._log.site:
                        group.create_task(self._read_for_ever(site), name=f"read {self.volume} of {site}")
        finally:
            await self._close()

    async def _open(self) -> None:
        while self._engine is None:
            try:
                self._engine = await self._made_engine()
                self.troubles.pop("", None)
            except errors.DiffKeeperError as error:
                self._trouble("", error)
                await asyncio.sleep(RETRY_S)

    async def _made_engine(self) -> SiteEngine:
        """From a thread. A cancelled task waits for it and closes what it made: its state is held by one alone."""
        running = asyncio.ensure_future(asyncio.to_thread(self._make_engine))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            if running.exception() is None:
                running.result().close()
            raise

    def _make_engine(self) -> SiteEngine:
        engine = SiteEngine(self._log.site, self._own, Path(self.role.path), self._now_us)
        try:
            engine.state.set_sites(self.role.sites)
            engine.start()
        except BaseException:
            engine.abandon()
            raise
        return engine

    async def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            async with self._engine_lock:
                with contextlib.suppress(errors.DiffKeeperError):
                    await asyncio.to_thread(engine.close)

    async def use(self, call: Callable[[SiteEngine], T]) -> T:
        """Run a blocking call on the engine, and look afterwards what it left to be done."""
        async with self._engine_lock:
            if self._engine is None:
                raise self.troubles.get("") or errors.Transient(
                    f"the shared volume {self.volume} is being opened", reason="not-ready", hint="try again"
                )
            answer = await _to_its_end(call, self._engine)
        self._wake.set()
        self._publish.set()
        return answer

    def _trouble(self, where: str, error: errors.DiffKeeperError) -> None:
        known = self.troubles.get(where)
        if known is None or known.message != error.message:
            _log.warning("a shared volume is held up", volume=self.volume, log=where, error=error.message)
        self.troubles[where] = error

    # -- the directory ---------------------------------------------------------------------------------------

    async def _step_for_ever(self) -> None:
        self._wake.set()
        scanned = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._wake.wait()
            self._wake.clear()
            scan = not self._is_watched and time.monotonic() - scanned > SCAN_S
            paths, self._heard = self._heard, {}
            try:
                busy = await self._with_engine(functools.partial(_step, paths=paths, scan=scan))
                self._in_vain = 0 if busy or paths else self._in_vain + 1
                self.troubles.pop("", None)
            except errors.DiffKeeperError as error:
                self._trouble("", error)
                self._heard |= dict.fromkeys([*paths, EVERYTHING])
                await asyncio.sleep(RETRY_S)
                self._wake.set()
            if scan:
                scanned = time.monotonic()
            self._publish.set()
            await self._say_seen()

    async def _with_engine(self, call: Callable[[SiteEngine], T]) -> T:
        async with self._engine_lock:
            assert self._engine is not None, "tasks run while it is open"
            return await _to_its_end(call, self._engine)

    @property
    def _is_watched(self) -> bool:
        return self._capture_heard and self.role.captured

    def _patience(self) -> float:
        engine = self._engine
        assert engine is not None, "tasks run while it is open"
        if engine.is_waiting:
            return min(AGAIN_S * (1 << min(self._in_vain, 10)), RETRY_S)
        if len(engine.displaced):
            return DISPLACED_LOOK_S
        if not self._is_watched:
            return SCAN_S
        return SEEN_AFTER_S if engine.state.has_news else KEEP_TOUCHED_S

    async def _say_seen(self) -> None:
        assert self._engine is not None, "tasks run while it is open"
        now = time.monotonic()
        if not self._engine.state.has_news:
            self._seen_due = 0.0
        elif not self._seen_due:
            self._seen_due = now + SEEN_AFTER_S
        elif now >= self._seen_due:
            self._seen_due = 0.0
            await self._with_engine(_say_and_fold)
            self._publish.set()

    # -- this site's own capture -----------------------------------------------------------------------------

    async def _watch_for_ever(self) -> None:
        origin = volumes.Origin(self.role.member, self._log.site)
        kept = time.monotonic()
        while True:
            try:
                async with aclosing(self._log.read(origin, self._touched.sequence + 1)) as arriving:
                    async for stored in arriving:
                        self._hear(self._touched.take(stored.stream_sequence, frames.open_frame(stored.wire)))
                        if time.monotonic() - kept > KEEP_TOUCHED_S:
                            await asyncio.to_thread(self._touched.keep)
                            kept = time.monotonic()
            except (errors.Transient, errors.NotFound) as error:
                _log.debug("the captured log is not there", volume=self.volume, error=error.message)
            except errors.DiffKeeperError as error:
                # It says only where to look: without it everything is looked at now and then.
                self._trouble("capture", error)
            self._capture_heard = False
            await asyncio.sleep(RETRY_S)

    def _hear(self, touched: dict[bytes, Ranges]) -> None:
        self._capture_heard = True
        self.troubles.pop("capture", None)
        if not touched:
            return
        for path, ranges in touched.items():
            self._heard[path] = written.joined(self._heard.get(path, []), ranges)
        self._wake.set()

    # -- the others' logs ------------------------------------------------------------------------------------

    async def _read_for_ever(self, site: str) -> None:
        origin = volumes.Origin(self.volume, site)
        while True:
            try:
                await self._log.create_mirror(origin)
                async with aclosing(self._frames_of(origin)) as arriving:
                    async for sequence, records in arriving:
                        await self._with_engine(
                            functools.partial(_take, site=site, sequence=sequence, records=records)
                        )
                        self.troubles.pop(site, None)
                        self._wake.set()
            except (errors.Transient, errors.NotFound) as error:
                _log.debug("a merge log is not there", volume=self.volume, site=site, error=error.message)
                if error.reason == "unknown-merger":
                    self._trouble(site, error)
            except errors.DiffKeeperError as error:
                self._trouble(site, error)
            await asyncio.sleep(RETRY_S)

    async def _frames_of(
        self, origin: volumes.Origin
    ) -> AsyncGenerator[tuple[int, list[shared_ops.Record]], None]:
        """Verified records of a site with the place from which to go on; from where it was left."""
        assert self._engine is not None, "tasks run while it is open"
        peer = self._engine.state.peers.get(origin.site)
        done = peer.sequence if peer is not None else 0
        tip: frames.Tip | None = frames.ORIGIN_TIP if done == 0 else None
        assembler = merge_log.Assembler(origin)
        # The frame that was taken last is read again: the next one has to continue it.
        async with aclosing(self._log.read(origin, max(done, 1))) as arriving:
            async for stored in arriving:
                frame = frames.open_frame(stored.wire)
                merge_log.check(origin, tip, frame)
                tip = merge_log.tip_of(frame)
                if stored.stream_sequence <= done:
                    continue
                records = assembler.take(frame)
                if assembler.is_between:
                    done = stored.stream_sequence
                yield done, records

    # -- publishing ------------------------------------------------------------------------------------------

    async def _publish_for_ever(self) -> None:
        while True:
            try:
                await self._publisher.find_end()
                await self._with_engine(functools.partial(_published, number=self._publisher.end.number))
                self.troubles.pop("publish", None)
                while True:
                    await self._publish.wait()
                    self._publish.clear()
                    await self._publish_all()
            except errors.Transient as error:
                _log.debug("the merge log cannot be written", volume=self.volume, error=error.message)
            except errors.DiffKeeperError as error:
                self._trouble("publish", error)
            self._publish.set()
            await asyncio.sleep(RETRY_S)

    async def _publish_all(self) -> None:
        while True:
            waiting = await self._with_engine(lambda engine: engine.outbox())
            if not waiting:
                return
            stamp = self._engine.state.clock if self._engine is not None else 0
            published = await self._publisher.append(waiting, stamp)
            await self._with_engine(functools.partial(_published, number=published))

    async def undo(self, asked: undoing.Asked) -> dict[str, Any]:
        """Take back the edits of one site: of all logs, as far as this site has taken them in."""
        if asked.by not in self.role.sites:
            raise errors.NotFound(
                f"{self.volume} is not shared with site {asked.by!r}",
                reason="unknown-site",
                hint=f"its sites are {', '.join(self.role.sites)}",
            )
        history = await self.use(lambda engine: undoing.begin(engine, asked))
        for _ in range(UNDO_ROUNDS_MAX):
            reach = await self.use(undoing.published)
            for site, number in sorted(reach.items()):
                if number > history.read.get(site, 0):
                    origin = volumes.Origin(self.volume, site)
                    await edit_history.read(self._log, origin, history, number)
            done = await self.use(lambda engine: undoing.finish(engine, asked, history))
            if done is not None:
                return done
        raise errors.Transient(
            "the file is edited faster than its edits can be read; nothing was taken back",
            reason="still-changing",
            hint="try again when it is quieter",
        )

    # -- telling ---------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        state = "merging" if not self.troubles else "held-up"
        shown: dict[str, Any] = {
            "volume": self.volume,
            "path": self.role.path,
            "member": self.role.member,
            "state": state if self._engine is not None else "opening",
            "troubles": [{"log": where, **error.to_dict()} for where, error in sorted(self.troubles.items())],
        }
        # What a long step is busy with is told as it was before.
        if self._engine is not None and not self._engine_lock.locked():
            self._told = await self._with_engine(lambda engine: engine.status())
        return shown | self._told


async def _to_its_end(call: Callable[[SiteEngine], T], engine: SiteEngine) -> T:
    """A call in a thread. A cancelled task waits for it: nobody else may touch the engine before."""
    running = asyncio.ensure_future(asyncio.to_thread(call, engine))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _step(engine: SiteEngine, *, paths: dict[bytes, Ranges], scan: bool) -> bool:
    for path, ranges in paths.items():
        engine.changes.written.add(path, ranges)
    if scan or EVERYTHING in paths:
        engine.scan()
    engine.touch(paths.keys() - {EVERYTHING})
    busy = engine.step()
    return engine.look_at_displaced() or busy


def _take(engine: SiteEngine, *, site: str, sequence: int, records: list[shared_ops.Record]) -> None:
    engine.take_frame(site, sequence, records)


def _published(engine: SiteEngine, *, number: int) -> None:
    engine.published(number)


def _say_and_fold(engine: SiteEngine) -> None:
    engine.say_seen()
    engine.fold()
