"""One volume at this site: its role, and what the admin calls do to it.

Following is two tasks, the intake (stream to journal) and the replayer (journal to directory), over three
things on disk: journal, directory, cursor files. Leading is nothing at all: the directory is the program's.
Calls that change the role come one at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from diffkeeper import atomic_files
from diffkeeper.domain import errors, frames, positions
from diffkeeper.log import event_log
from diffkeeper_replicator import (
    chains,
    directory,
    early_journal,
    orphans,
    safe_paths,
    statuses,
    stepping_back,
    taking_back,
    undo,
)
from diffkeeper_replicator.cursor import Kept, Promotion, Role, VolumeFiles
from diffkeeper_replicator.intake import Intake
from diffkeeper_replicator.journal import Journal
from diffkeeper_replicator.replayer import Replayer
from diffkeeper_replicator.subscriber import Subscriber

# A directory that something still writes to is looked at again after this.
TAKE_BACK_RETRY_S = 1.0

_log = structlog.get_logger("replica")

Spawn = Callable[[str, Coroutine[Any, Any, Any]], asyncio.Task[Any]]


class Replica:
    def __init__(
        self,
        volume: str,
        log: event_log.EventLog,
        files: VolumeFiles,
        default_path: Path,
        spawn: Spawn,
        now_us: Callable[[], int],
        *,
        allow_setid: bool = False,
    ) -> None:
        self.volume = volume
        self.files = files
        self.site = log.site
        self._log = log
        self._default_path = default_path
        self._spawn = spawn
        self.now_us = now_us
        self.allow_setid = allow_setid
        # The newest epoch promised, durably: by itself, or by a role to lead in it.
        self.promised = files.promised()
        self._changing = asyncio.Lock()
        self._kept: Kept | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        # The directory is a program's already, and what followed with it is still open.
        self._is_leaving = False
        # While this site leads and is about to be relieved: what it is going to follow with.
        self._early: early_journal.EarlyJournal | None = None
        # Both are there while following, None otherwise.
        self.intake: Intake | None = None
        self.replayer: Replayer | None = None
        self.opening = False
        # Why following could not even begin.
        self.fault: errors.DiffKeeperError | None = None

    @property
    def wanted(self) -> Role | None:
        return self._kept.wanted if self._kept is not None else None

    @property
    def promotion(self) -> Promotion | None:
        return self._kept.promotion if self._kept is not None else None

    @property
    def path(self) -> Path:
        wanted = self.wanted
        return Path(wanted.path) if wanted is not None and wanted.path else self._default_path

    async def resume(self) -> None:
        """Take the role up again that was wanted before the restart."""
        async with self._changing:
            self._kept = self.files.role()
            if self._kept is not None and self._kept.wanted.role == "follow":
                await self._begin()
            elif self._kept is not None:
                await self._promise(self._kept.wanted.epoch)
                self.files.leave_directory()  # in case the end came between the promotion and this

    async def put_role(self, role: Role) -> None:
        async with self._changing:
            await self._finish_leaving()
            if self._kept is not None and role == self._kept.wanted:
                if role.role == "follow" and (self.fault is not None or self._could_not_open()):
                    await self._end(clean=False)
                    await self._begin()  # what was in the way may be gone
                    await self._check_adopted(role)
                return
            if role.epoch < self.promised:
                raise errors.Fenced(
                    f"epoch {self.promised} was promised here; a role of epoch {role.epoch} is over",
                    reason="epoch-promised",
                    promised=self.promised,
                )
            if role.role == "lead":
                await self._lead(role)
            else:
                await self._follow(role)

    async def promise(self, epoch: int) -> frames.Tip:
        """Nothing older than ``epoch`` is confirmed from now on, also after a crash."""
        async with self._changing:
            if epoch < self.promised:
                raise errors.Fenced(
                    f"epoch {self.promised} was promised here already",
                    reason="epoch-promised",
                    promised=self.promised,
                )
            if self.intake is not None:
                self.intake.promised = epoch
            await self._promise(epoch)
            if self.intake is not None:
                return await self.intake.promise(epoch)
            if self._kept is not None and self._kept.promotion is not None:
                return self._kept.promotion.tip()
            return frames.ORIGIN_TIP

    async def catch_up(self, position: positions.Position | None, timeout_s: float) -> dict[str, Any]:
        """Apply up to ``position``, or all that this site's streams hold now."""
        began = time.monotonic()
        if self.intake is None or self.replayer is None:
            promotion = self.promotion
            if promotion is None or (position is not None and promotion.tip().position < position):
                raise self._not_following()
            return _caught_up(promotion.tip(), 0, 0, began)
        intake, replayer = self.intake, self.replayer
        first, first_bytes = replayer.applied.position.sequence, replayer.applied_bytes
        target = position if position is not None else await intake.furthest()
        if target > intake.reach:
            intake.reach = target
            intake.change()
        try:
            with replayer.awaited():
                async with asyncio.timeout(timeout_s):
                    await self._applied_to(target, intake, replayer)
        except TimeoutError as error:
            raise errors.TimedOut(
                f"the replica stands at {replayer.applied.position} and not yet at {target}",
                reason="behind",
                hint="dkctl status shows what holds it",
                applied=str(replayer.applied.position),
                cause=self.trouble.message if self.trouble is not None else intake.waiting,
            ) from error
        applied = replayer.applied
        return _caught_up(
            applied, applied.position.sequence - first, replayer.applied_bytes - first_bytes, began
        )

    async def promote(self, epoch: int) -> Promotion:
        """Stop following; the directory is the program's from now on.

        The journal has everything durably, so the directory is not synced before the answer; that goes on
        behind it.
        """
        began = time.monotonic()
        async with self._changing:
            wanted, done = self.wanted, self.promotion
            if wanted is not None and wanted.role == "lead" and done is not None and done.epoch == epoch:
                return done
            if self.intake is None or self.replayer is None or self._kept is None:
                raise self._not_following()
            if epoch < self.promised:
                raise errors.Fenced(
                    f"a newer epoch than {epoch} was promised here", reason="epoch-promised", epoch=epoch
                )
            await self.replayer.opened.wait()
            await self._halt()
            try:
                await self.replayer.apply_all()
                return await self._let_go(self._kept, self._promotable(self.replayer), epoch, began)
            except (errors.DiffKeeperError, OSError) as error:
                if self.replayer is not None:
                    self._run_following()
                raise _as_ours(error, "promoting") from error

    async def prepare_follow(self, timeout_s: float) -> positions.Position:
        """While this site leads: have the journal ready for the next reign (see ``early_journal``); where it is.

        Asked again it goes on waiting. Raises Refused where this site does not lead, Corrupt where the journal cannot be
        gone on with.
        """
        async with self._changing:
            await self._finish_leaving()
            role = self.wanted
            last = role.chain[-1] if role is not None and role.chain else None
            if role is None or role.role != "lead" or last is None or last.epoch != role.epoch:
                raise errors.Refused(
                    f"{self.volume} is not led at {self.site}", reason="not-leading", hint="dkctl status"
                )
            early = self._early
            if early is None:
                intake, replayer = await self._open_log(role)
                running = self._spawn(f"early-{self.volume}", intake.run())
                early = self._early = early_journal.EarlyJournal(intake, replayer, running)
                early.expiry = asyncio.get_running_loop().call_later(
                    early_journal.WAITS_S,
                    lambda: self._spawn(f"early-end-{self.volume}", self._end_if_unused(early)),
                )
        return await early.reach_end(timeout_s)

    async def _end_if_unused(self, early: early_journal.EarlyJournal) -> None:
        async with self._changing:
            if self._early is early:
                await self._end_early()

    async def _end_early(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            await early.end()

    async def prepare_promote(self) -> Promotion:
        """Have the tree state written down while frames still come, so that a promotion tells only what became of it.

        The answer is what a promotion now would be; its epoch is none. Raises Refused where the replica could not be
        promoted.
        """
        began = time.monotonic()
        async with self._changing:
            await self._finish_leaving()
            replayer = self.replayer
            if self.intake is None or replayer is None:
                raise self._not_following()
            await replayer.opened.wait()
            opened = self._promotable(replayer)
            try:
                encoded, tip, stamp = await replayer.in_thread(
                    lambda: (opened.prepare_hand_over(), opened.tip, opened.stamp)
                )
                await asyncio.to_thread(self.files.write_prepared, encoded)
            except OSError as error:
                raise _as_ours(error, "preparing a promotion") from error
            await replayer.in_thread(lambda: opened.prepared_is_kept(tip))
            path, state = str(self.path), str(self.files.prepared)
            took_ms = round((time.monotonic() - began) * 1000, 3)
            return Promotion(0, str(tip.position), tip.hash.hex(), stamp, path, state, took_ms)

    async def trim_journal(self, sequence: int) -> int:
        """Whole segments of the journal that the history holds and that this replica's tree checkpoint is
        beyond go; how many bytes that freed.
        """
        async with self._changing:
            await self._finish_leaving()
            intake, replayer = self.intake, self.replayer
            if intake is None or replayer is None or replayer.directory is None:
                return 0
            state = await asyncio.to_thread(self.files.state)
            if state is None:
                return 0
            upto = min(sequence, state.position.sequence, replayer.applied.position.sequence)
            freed: int = await intake.in_thread(lambda: intake.journal.drop_upto(upto))
            return freed

    async def rebuild(self) -> None:
        """Build the directory anew from the journal; what is in it now is moved aside, beside it.

        A tail that the chain left behind is put into ``orphans`` and taken out of the journal first.
        """
        async with self._changing:
            if self._kept is None or self._kept.wanted.role != "follow":
                raise self._not_following()
            trouble = self.intake.trouble if self.intake is not None else self.fault
            await self._end(clean=False)
            await asyncio.to_thread(self._prepare_rebuild, trouble)
            await self._keep(Kept(self._kept.wanted, rebuilt=True))
            await self._begin()

    async def close(self) -> None:
        """An orderly end: the next start is immediate."""
        async with self._changing:
            await self._finish_leaving()
            await self._end_early()
            await self._end(clean=True)

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> errors.DiffKeeperError | None:
        for found in (
            self.fault,
            self.replayer.trouble if self.replayer is not None else None,
            self.intake.trouble if self.intake is not None else None,
        ):
            if found is not None:
                return found
        return None

    @property
    def state(self) -> str:
        return statuses.state_of(self)

    def status(self) -> dict[str, Any]:
        return statuses.status_of(self)

    def _could_not_open(self) -> bool:
        replayer = self.replayer
        return replayer is not None and replayer.directory is None and replayer.trouble is not None

    # -- changing roles --------------------------------------------------------------------------------------

    async def _lead(self, role: Role) -> None:
        """The directory belongs to the program, whatever stood in it."""
        await self._end_early()
        await self._end(clean=False)
        promotion = self.promotion
        await self._keep(
            Kept(role, promotion if promotion is not None and promotion.epoch == role.epoch else None)
        )
        await asyncio.to_thread(self.files.leave_directory)

    async def _follow(self, role: Role) -> None:
        before = self._kept
        if before is not None and before.wanted.role == "lead":
            await asyncio.to_thread(self.files.leave_directory)
        rebuilt = before is not None and before.rebuilt and before.wanted.tree_state == role.tree_state
        await self._keep(Kept(role, rebuilt=rebuilt))
        same_place = (
            before is not None
            and before.wanted.role == "follow"
            and before.wanted.path == role.path
            and role.tree_state in (None, before.wanted.tree_state)
        )
        if same_place and self.intake is not None and not self._is_beyond(role, self.intake.journal.tip):
            self.intake.chain = [link.link() for link in role.chain]
            self.intake.change()
            return
        await self._end(clean=True)
        await self._begin()
        await self._check_adopted(role)

    def _take_early(self, role: Role) -> early_journal.EarlyJournal | None:
        """What was made ready for just this, unless it holds more than the chain goes on from."""
        early = self._early
        if early is None or early.intake.trouble is not None or self._is_beyond(role, early.intake.tip):
            return None
        self._early = None
        early.keep()
        return early

    def _is_beyond(self, role: Role, tip: frames.Tip) -> bool:
        """Whether the journal holds frames that the chain goes on without."""
        return self._parent_behind(role, tip) is not None

    def _parent_behind(self, role: Role, tip: frames.Tip) -> frames.Tip | None:
        links = [link.link() for link in role.chain]
        try:
            chains.next_reading(tip, links)
        except errors.Corrupt as error:
            if error.reason != "tail-beyond-parent":
                return None
            known = [link.parent for link in links if link.parent is not None]
            return next(one for one in known if str(one.position) == error.facts["parent"])
        return None

    def _leave_tail(self, journal: Journal, role: Role) -> None:
        """Make a branch of frames that the chain goes on without, and go back to where it goes on. In a thread.

        Where the directory cannot be brought back everything stays as it is, and what is raised says why.
        """
        parent = self._parent_behind(role, journal.tip)
        note = self.files.note()
        if parent is None:
            return
        if note is None or note.left:
            orphans.set_own_aside(self.files, journal, parent.position, self.site)
            return
        if note.path != str(self.path):
            return
        tail = list(journal.frames_after(parent.position))
        branch = taking_back.note_of(
            self.volume,
            self.site,
            tail[0].position.epoch,
            parent,
            tail,
            "tail beyond parent",
            self.now_us(),
            self.path,
        )
        stepping_back.leave_tail(
            self.files, self.path, journal, parent, branch, tail, allow_setid=self.allow_setid
        )

    async def _check_adopted(self, role: Role) -> None:
        """The caller forgets the tree state once it is answered, so the answer says whether it was used."""
        if role.tree_state is not None and self.replayer is not None:
            await self.replayer.opened.wait()
            if self.replayer.directory is None and self.replayer.trouble is not None:
                raise self.replayer.trouble

    async def _begin(self) -> None:
        """Open what is on disk and follow."""
        assert self._kept is not None, "only a wanted role begins"
        self.fault = None
        role = self._kept.wanted
        early = self._take_early(role)
        if early is not None:
            early.intake.promised = self.promised
            early.intake.chain = [link.link() for link in role.chain]
            early.intake.change()
            self.intake, self.replayer = early.intake, early.replayer
            self._tasks = [
                early.running,
                self._spawn(f"replay-{self.volume}", self._replay(early.replayer)),
            ]
            return
        await self._end_early()
        try:
            self.intake, self.replayer = await self._open_log(role)
        except (errors.DiffKeeperError, OSError) as error:
            self.fault = _as_ours(error, "opening the journal")
            return
        self._run_following()

    async def _open_log(self, role: Role) -> tuple[Intake, Replayer]:
        """The journal with what reads into it and what is to apply it; nothing runs yet."""
        journal = await asyncio.to_thread(Journal.open, self.files.journal)
        await asyncio.to_thread(self._leave_tail, journal, role)
        replayer = Replayer(self.volume, self.files, lambda: intake.journal)
        intake = Intake(
            Subscriber(self.volume, self._log),
            self._log,
            journal,
            lambda: Journal.open(self.files.journal, distrust_cache=True),
            replayer,
            self.now_us,
        )
        intake.promised = self.promised
        intake.chain = [link.link() for link in role.chain]
        return intake, replayer

    def _run_following(self) -> None:
        assert self.intake is not None and self.replayer is not None, "both exist while following"
        self._tasks = [
            self._spawn(f"intake-{self.volume}", self.intake.run()),
            self._spawn(f"replay-{self.volume}", self._replay(self.replayer)),
        ]

    async def _replay(self, replayer: Replayer) -> None:
        if replayer.directory is None and replayer.trouble is None:
            self.opening = replayer.is_opening = True
            try:
                await self._open(replayer)
            finally:
                self.opening = replayer.is_opening = False
        await replayer.run()

    async def _open(self, replayer: Replayer) -> None:
        """Open the directory, once what a fenced leader left in it can be taken back."""
        wanted, intake = self.wanted, self.intake
        assert wanted is not None and intake is not None, "only a follower opens"
        try:
            wish = taking_back.wish_of(wanted, self.site, self.path, self.files.note())
            if wish is None:
                await replayer.open(self._open_directory)
                return
            while intake.journal.tip.position < wish.parent.position:
                intake.grown.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(intake.grown.wait(), 1.0)
            tail = await taking_back.tail_of(wish, Subscriber(self.volume, self._log))
        except errors.DiffKeeperError as error:
            replayer.fail(error)
            return
        while True:
            await replayer.open(lambda: self._take_back(wish, tail, intake.journal))
            if not isinstance(replayer.trouble, errors.Transient):
                return
            await asyncio.sleep(TAKE_BACK_RETRY_S)

    def _take_back(
        self, wish: taking_back.Wish, tail: list[frames.Frame], journal: Journal
    ) -> directory.Directory:
        """In the replayer's thread."""
        return taking_back.take_back(
            self.files,
            self.volume,
            self.site,
            wish,
            tail,
            journal,
            self.now_us(),
            allow_setid=self.allow_setid,
        )

    def _open_directory(self) -> directory.Directory:
        """In the replayer's thread."""
        wanted = self.wanted
        assert wanted is not None and self.intake is not None, "only a follower opens"
        rebuilt = self._kept is not None and self._kept.rebuilt
        given = Path(wanted.tree_state) if wanted.tree_state and not rebuilt else None
        if given is not None and not directory.adopted_with(self.files.note(), given):
            return directory.adopt(self.files, self.volume, self.path, given, allow_setid=self.allow_setid)
        return directory.open_or_begin(
            self.files, self.volume, self.path, self.intake.journal, allow_setid=self.allow_setid
        )

    async def _halt(self) -> None:
        """Stop both tasks; journal and directory are at rest afterwards."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.intake is not None:
            await self.intake.settle()
        if self.replayer is not None:
            await self.replayer.settle()

    async def _end(self, *, clean: bool) -> None:
        await self._halt()
        replayer, self.replayer = self.replayer, None
        intake, self.intake = self.intake, None
        if replayer is not None:
            await replayer.close(clean=clean)
        if intake is not None:
            intake.close()

    async def _promise(self, epoch: int) -> None:
        if epoch > self.promised:
            await asyncio.to_thread(self.files.write_promise, epoch)
            self.promised = epoch

    async def _keep(self, kept: Kept) -> None:
        try:
            await asyncio.to_thread(self.files.write_role, kept)
        except OSError as error:
            raise _as_ours(error, "writing the role down") from error
        self._kept = kept

    def _promotable(self, replayer: Replayer) -> directory.Directory:
        if replayer.trouble is not None:
            raise replayer.trouble
        if replayer.directory is None or not replayer.directory.base_complete:
            raise errors.Refused(
                f"the first scan of {self.volume} has not arrived here as a whole; nothing was promoted",
                reason="base-incomplete",
                hint="another site may have it; dkctl status shows what each replica holds",
            )
        return replayer.directory

    async def _let_go(self, kept: Kept, opened: directory.Directory, epoch: int, began: float) -> Promotion:
        """The tree state, then the role. That the directory was left is noted behind the answer, and after a crash because
        of the role.
        """
        assert self.replayer is not None, "checked by the caller"

        encoded = await self.replayer.in_thread(opened.hand_over)
        promotion = Promotion(
            epoch,
            str(opened.tip.position),
            opened.tip.hash.hex(),
            opened.stamp,
            str(self.path),
            str(self.files.promoted),
            round((time.monotonic() - began) * 1000, 3),
        )
        path = str(self.path)
        role = msgspec.structs.replace(
            kept.wanted, role="lead", epoch=epoch, leader=self.site, path=path, tree_state=None
        )
        promoted = Kept(role, promotion)
        try:
            await asyncio.to_thread(self.files.write_promotion, encoded, promoted)
        except OSError as error:
            raise _as_ours(error, "writing the promotion down") from error
        self._kept = promoted
        self.promised = max(self.promised, epoch)
        self._is_leaving = True
        self._spawn(f"settle-{self.volume}", self._settle_left(self.path))
        return promotion

    async def _finish_leaving(self) -> None:
        """What a promotion leaves to be done behind its answer; before anything else is done with the role."""
        if self._is_leaving:
            self._is_leaving = False
            await asyncio.to_thread(self.files.leave_directory)
            await asyncio.to_thread(
                self.files.write_promise, self.promised
            )  # the role has it until another comes
            await self._end(clean=False)

    async def _settle_left(self, path: Path) -> None:
        async with self._changing:
            await self._finish_leaving()
        await self._sync_left(path)

    async def _sync_left(self, path: Path) -> None:
        """Behind the answer: what was applied reaches the disk before the program's own syncs need it."""

        def sync() -> None:
            fd = safe_paths.open_root(path)
            try:
                safe_paths.sync_filesystem(fd)
            finally:
                os.close(fd)
            undo.remove_beside(path)

        await asyncio.to_thread(sync)

    def _prepare_rebuild(self, trouble: errors.DiffKeeperError | None) -> None:
        if trouble is not None and trouble.reason == "journal-damaged":
            _move_aside(self.files.journal, "damaged")
        elif trouble is not None and trouble.reason == "tail-beyond-parent":
            orphans.set_aside(self.files, positions.parse(trouble.facts["parent"]))
        if self.path.is_dir() and any(self.path.iterdir()):
            _move_aside(self.path, "kept")
        self.files.forget_directory()

    async def _applied_to(self, target: positions.Position, intake: Intake, replayer: Replayer) -> None:
        while replayer.applied.position < target:
            trouble = self.trouble
            if trouble is not None and not isinstance(trouble, errors.Transient):
                raise trouble
            replayer.moved.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(replayer.moved.wait(), 0.1)

    def _not_following(self) -> errors.DiffKeeperError:
        if self.fault is not None:
            return self.fault
        return errors.Refused(
            f"{self.volume} is not followed at {self.site}", reason="not-following", hint="dkctl status"
        )


def _caught_up(tip: frames.Tip, count: int, size: int, began: float) -> dict[str, Any]:
    return {
        "position": str(tip.position),
        "hash": tip.hash.hex(),
        "frames": count,
        "bytes": size,
        "took_ms": round((time.monotonic() - began) * 1000, 3),
    }


def _as_ours(error: errors.DiffKeeperError | OSError, doing: str) -> errors.DiffKeeperError:
    return error if isinstance(error, errors.DiffKeeperError) else safe_paths.disk_error(error, doing)


def _move_aside(path: Path, word: str) -> None:
    """To the first free name beside it."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.{word}-{number}")
        if not aside.exists():
            path.rename(aside)
            atomic_files.fsync_directory(path.parent)
            return
