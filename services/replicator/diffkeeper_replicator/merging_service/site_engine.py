"""One site of a shared volume without its logs: state, directory, and the two ways between them.

Blocking; one thread at a time. ``step`` is the whole of it: look at what was touched, write out what is
pending, commit. Whoever owns it feeds in records and touched paths, and publishes the outbox.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from diffkeeper.domain import shared_ops
from diffkeeper_replicator.merging_service import large_files, shared_state
from diffkeeper_replicator.merging_service.disk_model import Directory, DiskModel
from diffkeeper_replicator.merging_service.displaced import Displaced
from diffkeeper_replicator.merging_service.local_changes import LocalChanges, Outcome
from diffkeeper_replicator.merging_service.shared_state import SharedState
from diffkeeper_replicator.merging_service.store import Store
from diffkeeper_replicator.merging_service.write_out import WriteOut

# Rounds of one step: what was looked at may have to be written again.
ROUNDS_MAX = 8
OUTBOX_BYTES = 4 * 1024 * 1024


class SiteEngine:
    def __init__(self, site: str, own: Path, path: Path, now_us: Callable[[], int]) -> None:
        self.directory = Directory(path, own / "aside")
        try:
            self.store = Store(own / "state.db")
        except BaseException:
            self.directory.close()
            raise
        self.state = SharedState(site, self.store, now_us)
        self.disk = DiskModel(self.store)
        self.displaced = Displaced(self.state, self.directory)
        self.changes = LocalChanges(self.state, self.disk, self.directory)
        self.writer = WriteOut(self.state, self.disk, self.directory, self.displaced)
        self.left_out: dict[bytes, str] = {}
        self._touched: set[bytes] = set()
        self._check_same_directory()

    def _check_same_directory(self) -> None:
        """In another directory than before everything that is there is new, and nothing was removed."""
        identity = self.directory.identity()
        known = self.store.fact("directory")
        if known is not None and known != identity:
            for entry_id in list(self.disk.standing):
                self.disk.drop(entry_id)
            for object_id in list(self.state.tree.objects):
                kept = self.store.document(object_id)
                if kept is not None:
                    kept.base = b""
                    self.store.put_document(object_id, kept)
        self.store.set_fact("directory", identity)
        self.store.commit()

    def start(self) -> None:
        """After a crash or not: finish what was begun, find what programs did meanwhile."""
        self.writer.recover()
        self._take(self.changes.scan(time.time_ns()))
        self.writer.everything()
        self.store.commit()

    def touch(self, paths: Iterable[bytes]) -> None:
        self._touched.update(paths)

    @property
    def is_waiting(self) -> bool:
        """Whether a further step may find something to do though nothing new comes."""
        return bool(self._touched or self.state.pending)

    def step(self) -> bool:
        """Whether anything was said or written."""
        busy = False
        for _ in range(ROUNDS_MAX):
            touched, self._touched = self._touched, set()
            outcome = self.changes.look(touched, time.time_ns()) if touched else Outcome()
            self._take(outcome)
            written = 0
            if self.state.pending:
                done = self.writer.round()
                written = done.written
                self.left_out.update(done.left_out)
                self._touched |= done.look
            busy = busy or bool(outcome.said or written)
            if not (outcome.said or written):
                break
        self.store.commit()
        return busy

    def _take(self, outcome: Outcome) -> None:
        self._touched |= outcome.later
        self.left_out.update(outcome.left_out)

    def look_at_displaced(self) -> bool:
        said = self.displaced.look() if len(self.displaced) else False
        self.store.commit()
        return said

    def scan(self) -> None:
        self._take(self.changes.scan(time.time_ns()))
        self.store.commit()

    def take(self, records: Iterable[shared_ops.Record]) -> None:
        for record in records:
            self.state.take(record)

    def take_frame(self, site: str, sequence: int, records: Iterable[shared_ops.Record]) -> None:
        """Records of another site, and the place in its log from which to go on. What was right is kept where one is
        not.
        """
        try:
            self.take(records)
            self.state.reached(site, sequence)
        finally:
            self.store.commit()

    def outbox(self) -> list[tuple[int, bytes]]:
        """Records to be published; durable."""
        self.store.commit()
        return self.store.outbox(OUTBOX_BYTES)

    def published(self, number: int) -> None:
        """Everything up to here stands in the log of this site."""
        self.state.check_published(number)
        self.store.drop_outbox(number)
        self.store.commit()

    def say_seen(self) -> bool:
        """Tell the others how much of their logs is in here, if that is news; only that lets them forget."""
        vector = {site: number for site, number in self.state.vector.items() if site != self.state.site}
        # Not when all that came was that others had seen something: two sites would answer each other for ever.
        if not vector or not self.state.has_news:
            return False
        self.state.has_news = False
        self.state.say(shared_ops.Seen(vector))
        self.store.commit()
        return True

    def fold(self) -> None:
        """Forget what every site has seen."""
        self.state.fold(self.disk.standing.keys())
        if not len(self.displaced):  # those go on from what their documents were
            self.state.compact()
        large_files.sweep(self.state)
        self.store.commit()

    def status(self) -> dict[str, Any]:
        return {
            **shared_state.summary(self.state),
            "files": len(self.disk.standing),
            "waiting": len(self._touched)
            + len(self.state.pending.directories)
            + len(self.state.pending.objects),
            "displaced": len(self.displaced),
            "left_out": [
                {"path": path.decode("utf-8", "backslashreplace"), "why": why}
                for path, why in sorted(self.left_out.items())[:100]
            ],
        }

    def close(self) -> None:
        try:
            self.store.commit()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Without what was not committed."""
        self.store.close()
        self.directory.close()
